// The kernel in plain JavaScript, for browsers without SIMD in WebAssembly. The two functions are those of
// live/kernel.ts, with the same arguments and the same layout of memory; see there for what they do.
(() => {
  "use strict";
  const [ADD, ELU, RELU] = [1, 2, 3];

  /**
   * @param {Float32Array} floats the whole memory; addresses are byte offsets into it
   * @returns {{im2col: function, matmul: function}}
   */
  vncaLive.plainKernel = (floats) => ({
    im2col(source, columns, channels, size, sourceStride, kernel, step, padding, outSize, outStride) {
      const cells = outSize * outSize;
      const move = step === 1 && outSize === size ? shifted : strided;
      let row = columns >> 2;
      for (let channel = 0; channel < channels; channel++) {
        const plane = (source >> 2) + channel * sourceStride;
        for (let dy = -padding; dy < kernel - padding; dy++) {
          for (let dx = -padding; dx < kernel - padding; dx++) {
            move(floats, plane, row, size, step, outSize, dy, dx);
            floats.fill(0, row + cells, row + ((cells + 7) & ~7));
            row += outStride;
          }
        }
      }
    },

    matmul(weights, bias, source, target, blocks, inputs, stride, from, to, mode) {
      // A tile of 4 outputs by 2 cells: as many sums as a processor has registers for.
      for (let cell = from; cell < to; cell += 2) {
        let weight = weights >> 2;
        let out = (target >> 2) + cell;
        for (let block = 0; block < blocks; block++) {
          const b = (bias >> 2) + 4 * block;
          let a0 = floats[b], a1 = floats[b + 1], a2 = floats[b + 2], a3 = floats[b + 3];
          let c0 = a0, c1 = a1, c2 = a2, c3 = a3;
          let at = (source >> 2) + cell;
          for (let input = 0; input < inputs; input++) {
            const x = floats[at], y = floats[at + 1];
            const w0 = floats[weight], w1 = floats[weight + 1], w2 = floats[weight + 2], w3 = floats[weight + 3];
            a0 += w0 * x; a1 += w1 * x; a2 += w2 * x; a3 += w3 * x;
            c0 += w0 * y; c1 += w1 * y; c2 += w2 * y; c3 += w3 * y;
            weight += 4;
            at += stride;
          }
          finish(floats, out, a0, c0, mode); out += stride;
          finish(floats, out, a1, c1, mode); out += stride;
          finish(floats, out, a2, c2, mode); out += stride;
          finish(floats, out, a3, c3, mode); out += stride;
        }
      }
    },
  });

  function shifted(floats, plane, row, size, step, outSize, dy, dx) {
    const shift = dy * size + dx;
    const skipped = Math.max(0, -shift);
    const count = size * size - Math.abs(shift);
    if (count > 0) floats.copyWithin(row + skipped, plane + skipped + shift, plane + skipped + shift + count);
    const above = Math.min(Math.max(-dy, 0), size), below = Math.min(Math.max(dy, 0), size);
    floats.fill(0, row, row + above * size);
    floats.fill(0, row + (size - below) * size, row + size * size);
    const left = Math.min(Math.max(-dx, 0), size), right = Math.min(Math.max(dx, 0), size);
    for (let line = row; line < row + size * size; line += size) {
      for (let x = 0; x < left; x++) floats[line + x] = 0;
      for (let x = size - right; x < size; x++) floats[line + x] = 0;
    }
  }

  function strided(floats, plane, row, size, step, outSize, dy, dx) {
    for (let y = 0; y < outSize; y++) {
      const sourceY = y * step + dy;
      for (let x = 0; x < outSize; x++) {
        const sourceX = x * step + dx;
        const inside = sourceY >= 0 && sourceY < size && sourceX >= 0 && sourceX < size;
        floats[row++] = inside ? floats[plane + sourceY * size + sourceX] : 0;
      }
    }
  }

  function finish(floats, out, a, c, mode) {
    if (mode === ADD) {
      a += floats[out];
      c += floats[out + 1];
    } else if (mode === ELU) {
      if (a < 0) a = Math.expm1(a);
      if (c < 0) c = Math.expm1(c);
    } else if (mode === RELU) {
      if (a < 0) a = 0;
      if (c < 0) c = 0;
    }
    floats[out] = a;
    floats[out + 1] = c;
  }
})();
