// The arithmetic of the live figures: a convolution is `im2col` (gather every neighborhood into a column) and then
// `matmul` (multiply the columns by the weights). There is no runtime and no allocation: the page lays out the memory
// and passes byte offsets.
//
// A grid of channels lies in memory channel by channel. Each channel is a row of `stride` floats, of which the first
// size * size are its cells; the rest pads the row to whole vectors, plus 8 floats more. Without those 8, rows whose
// length is a power of two fall into the same cache sets, which costs 20 to 60 % of the speed.
//
// `book/_static/live/plain.js` has the same two functions in JavaScript. Change both together.

// What `matmul` does with a finished sum.
const NONE: i32 = 0;
const ADD: i32 = 1; // adds it to what the target holds: a residual connection
const ELU: i32 = 2;
const RELU: i32 = 3;

const FLOATS: usize = 2; // shift from a number of floats to bytes

/**
 * Gathers neighborhoods: row (channel, dy, dx) of `columns` holds, for each cell of the output, the input cell at that
 * place of its neighborhood, or 0 beyond the border.
 *
 * source: (channels, size, size), rows of `sourceStride` floats.
 * columns: (channels * kernel * kernel, outSize * outSize), rows of `outStride` floats; filled up to whole 8 floats.
 */
export function im2col(
  source: usize, columns: usize, channels: i32, size: i32, sourceStride: i32,
  kernel: i32, step: i32, padding: i32, outSize: i32, outStride: i32,
): void {
  const cells = outSize * outSize;
  const tail = (<usize>(((cells + 7) & ~7) - cells)) << FLOATS;
  let row = columns;
  for (let channel = 0; channel < channels; channel++) {
    const plane = source + ((<usize>(channel * sourceStride)) << FLOATS);
    for (let dy = -padding; dy < kernel - padding; dy++) {
      for (let dx = -padding; dx < kernel - padding; dx++) {
        if (step == 1 && outSize == size) shifted(plane, row, size, dy, dx);
        else strided(plane, row, size, step, outSize, dy, dx);
        memory.fill(row + ((<usize>cells) << FLOATS), 0, tail);
        row += (<usize>outStride) << FLOATS;
      }
    }
  }
}

/** One row of `im2col` where the output is as large as the input: the plane moved as a whole, its border cleared. */
function shifted(plane: usize, row: usize, size: i32, dy: i32, dx: i32): void {
  const shift = dy * size + dx;
  const skipped = shift < 0 ? -shift : 0;
  const count = size * size - abs(shift);
  if (count > 0) {
    memory.copy(
      row + ((<usize>skipped) << FLOATS), plane + ((<usize>(skipped + shift)) << FLOATS), (<usize>count) << FLOATS,
    );
  }
  // The cells whose neighbor lies above or below the grid.
  const above = min(max(-dy, 0), size), below = min(max(dy, 0), size);
  memory.fill(row, 0, (<usize>(above * size)) << FLOATS);
  memory.fill(row + ((<usize>((size - below) * size)) << FLOATS), 0, (<usize>(below * size)) << FLOATS);
  // Those whose neighbor lies to the left or right of it, where the move brought in the end of another line.
  const left = min(max(-dx, 0), size), right = min(max(dx, 0), size);
  for (let y = 0; y < size; y++) {
    const line = row + ((<usize>(y * size)) << FLOATS);
    for (let x = 0; x < left; x++) store<f32>(line + ((<usize>x) << FLOATS), 0);
    for (let x = size - right; x < size; x++) store<f32>(line + ((<usize>x) << FLOATS), 0);
  }
}

/** One row of `im2col` in general. */
function strided(plane: usize, row: usize, size: i32, step: i32, outSize: i32, dy: i32, dx: i32): void {
  for (let y = 0; y < outSize; y++) {
    const sourceY = y * step + dy;
    for (let x = 0; x < outSize; x++) {
      const sourceX = x * step + dx;
      const inside = sourceY >= 0 && sourceY < size && sourceX >= 0 && sourceX < size;
      store<f32>(row, inside ? load<f32>(plane + ((<usize>(sourceY * size + sourceX)) << FLOATS)) : 0);
      row += 4;
    }
  }
}

/**
 * Multiplies columns by weights, adds the bias and finishes by `mode`, for the cells `from` <= cell < `to`.
 *
 * weights: blocks of 4 outputs, and in each the 4 weights of an input side by side: (blocks, inputs, 4).
 * bias: (4 * blocks). source: (inputs, cells). target: (4 * blocks, cells); both have rows of `stride` floats.
 * `from` and `to` are multiples of 8: a tile of 4 outputs by 8 cells stays in registers while the inputs pass by.
 */
export function matmul(
  weights: usize, bias: usize, source: usize, target: usize,
  blocks: i32, inputs: i32, stride: i32, from: i32, to: i32, mode: i32,
): void {
  const next = (<usize>stride) << FLOATS;
  const end = (<usize>to) << FLOATS;
  for (let cell = (<usize>from) << FLOATS; cell < end; cell += 32) {
    let weight = weights;
    let out = target + cell;
    for (let block = 0; block < blocks; block++) {
      const b = bias + ((<usize>(4 * block)) << FLOATS);
      let a0 = v128.load32_splat(b), a1 = v128.load32_splat(b, 4);
      let a2 = v128.load32_splat(b, 8), a3 = v128.load32_splat(b, 12);
      let c0 = a0, c1 = a1, c2 = a2, c3 = a3;
      let from = source + cell;
      for (let input = 0; input < inputs; input++) {
        const x = v128.load(from), y = v128.load(from, 16);
        let w = v128.load32_splat(weight);
        a0 = f32x4.add(a0, f32x4.mul(w, x)); c0 = f32x4.add(c0, f32x4.mul(w, y));
        w = v128.load32_splat(weight, 4);
        a1 = f32x4.add(a1, f32x4.mul(w, x)); c1 = f32x4.add(c1, f32x4.mul(w, y));
        w = v128.load32_splat(weight, 8);
        a2 = f32x4.add(a2, f32x4.mul(w, x)); c2 = f32x4.add(c2, f32x4.mul(w, y));
        w = v128.load32_splat(weight, 12);
        a3 = f32x4.add(a3, f32x4.mul(w, x)); c3 = f32x4.add(c3, f32x4.mul(w, y));
        weight += 16;
        from += next;
      }
      finish(a0, out, mode); finish(c0, out + 16, mode); out += next;
      finish(a1, out, mode); finish(c1, out + 16, mode); out += next;
      finish(a2, out, mode); finish(c2, out + 16, mode); out += next;
      finish(a3, out, mode); finish(c3, out + 16, mode); out += next;
    }
  }
}

// @ts-ignore: decorator
@inline function finish(sum: v128, target: usize, mode: i32): void {
  if (mode == ADD) sum = f32x4.add(sum, v128.load(target));
  else if (mode == ELU) sum = f32x4.add(f32x4.max(sum, f32x4.splat(0)), expm1OfNegative(sum));
  else if (mode == RELU) sum = f32x4.max(sum, f32x4.splat(0));
  v128.store(target, sum);
}

/** exp(min(x, 0)) - 1 in each lane, by the polynomial of Cephes' `expf`: x = n ln 2 + r, exp x = 2^n exp r. */
// @ts-ignore: decorator
@inline function expm1OfNegative(x: v128): v128 {
  x = f32x4.max(f32x4.min(x, f32x4.splat(0)), f32x4.splat(-87)); // below, 2^n is no float of full precision
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504088896341)));
  // ln 2 in two parts, so that the product with n loses nothing.
  let r = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let y = f32x4.splat(1.9875691500e-4);
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.3981999507e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(8.3334519073e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(4.1665795894e-2));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.6666665459e-1));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(5.0000001201e-1));
  y = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(y, r), r), r), f32x4.splat(1));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.sub(f32x4.mul(y, power), f32x4.splat(1));
}
