// On every page of the book: finds the live figures and, when one comes near the screen, loads what it needs.
//
//     <div class="live" data-live="DEMO" data-model="NAME ...">A sentence for readers without the live figure.</div>
//
// What it needs are classic scripts next to this one, because pages that are opened as files may load nothing else.
(() => {
  "use strict";
  if (window.vncaLive) return; // included twice

  const folder = new URL(".", document.currentScript.src);
  const scripts = new Map(); // path -> promise
  const seen = new WeakSet();

  // The smallest module with an instruction of SIMD: it validates only where the kernel will run.
  const SIMD = [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
  ];
  const hasSimd = () => typeof WebAssembly === "object" && WebAssembly.validate(Uint8Array.from(SIMD));

  function load(path) {
    if (!scripts.has(path)) {
      scripts.set(path, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = new URL(path, folder);
        script.onload = resolve;
        script.onerror = () => reject(new Error(`The file live/${path} is missing or could not be loaded.`));
        document.head.append(script);
      }));
    }
    return scripts.get(path);
  }

  async function bringToLife(element) {
    const demo = element.dataset.live;
    const models = (element.dataset.model ?? "").split(" ").filter(Boolean);
    try {
      await Promise.all([
        hasSimd() ? "kernel.js" : "plain.js", "network.js", "engine.js", "runtime.js",
        ...models.map((name) => `models/${name}.js`), `demo-${demo}.js`,
      ].map(load));
      if (!vncaLive.demos[demo]) throw new Error(`The file live/demo-${demo}.js is damaged.`);
      await vncaLive.mount(element, vncaLive.demos[demo], models);
    } catch (error) {
      fail(element, error);
    }
  }

  /** Shows what is in the element without the live figure again, with a message below. */
  function fail(element, error) {
    element.querySelector(".live-stage")?.remove();
    element.dataset.state = "failed";
    const message = document.createElement("p");
    message.className = "live-message";
    message.setAttribute("role", "status");
    message.textContent = `This figure stays still. ${error.message}`;
    element.append(message);
  }

  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      bringToLife(target);
    }
  }, { rootMargin: "400px" });

  window.vncaLive = {
    models: {}, // by name, as their scripts add them
    demos: {},
    addModel(model) { this.models[model.name] = model; },

    /**
     * @param {string} name as in `data-live`
     * @param {(stage: Stage) => Promise<void>} start builds the demo on its stage (see runtime.js)
     */
    addDemo(name, start) { this.demos[name] = start; },

    /** Loads a further script of this folder, once; rejects with a readable Error if it is missing. */
    load,

    fail,

    /** Looks for live figures; those found before are left alone. */
    start() {
      for (const element of document.querySelectorAll("div.live[data-live]")) {
        if (seen.has(element)) continue;
        seen.add(element);
        near.observe(element);
      }
    },
  };
  vncaLive.start();
})();
