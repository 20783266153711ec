// Compiles kernel.ts and writes it as a script for the pages:
//
//     npm ci && npm run build
//
// The same source and the same lock file give the same bytes. The result is committed, so that building the book needs
// no Node; a test compares the two.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";

const [out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node build.mjs OUT.js");
  process.exit(2);
}
process.chdir(fileURLToPath(new URL(".", import.meta.url)));

let wasm;
const { error, stderr } = await asc.main(
  ["kernel.ts", "--outFile", "kernel.wasm", "-O3", "--enable", "simd", "--importMemory", "--runtime", "stub"],
  { readFile: (name) => read(name), writeFile: (_, content) => { wasm = content; } },
);
if (error) {
  console.error(`${stderr}${error.message}`);
  process.exit(1);
}
const base64 = Buffer.from(wasm).toString("base64");
const beside = `${out}.${process.pid}.part`; // so that the script is whole or not there
writeFileSync(beside, `// Compiled from live/kernel.ts by live/build.mjs; do not edit.\nvncaLive.kernelBytes = "${base64}";\n`);
renameSync(beside, out);
console.log(`${out}: ${wasm.length} bytes of WebAssembly`);

/** The text of a file, or null where there is none: the compiler asks for several names of each module. */
function read(name) {
  try {
    return readFileSync(name, "utf8");
  } catch {
    return null;
  }
}
