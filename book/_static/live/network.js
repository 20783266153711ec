// Layers described as data, run by a kernel: what `Engine`, `Encoder`, `Decoder` and `Prior` of engine.js share.
(() => {
  "use strict";
  const MODES = { none: 0, add: 1, elu: 2, relu: 3 };
  // Multiply-adds between two places where a run can be interrupted: well below a millisecond with SIMD, a few
  // without it.
  const SLICE = 1e6;
  const BUDGET = 8; // ms of computing until the page may do something else
  const PIECE = 8192; // numbers between two such places while a model loads

  /** Floats in the row of one channel of a `size` × `size` grid: whole vectors of 8, and 8 more (see kernel.ts). */
  const strideOf = (size) => wholeCells(size) + 8;
  const wholeCells = (size) => (size * size + 7) & ~7;
  const wholeBlocks = (channels) => (channels + 3) & ~3;
  const outSizeOf = (layer, size) => Math.floor((size + 2 * layer.padding - layer.kernel) / layer.stride) + 1;

  const crcTable = Uint32Array.from({ length: 256 }, (_, value) => {
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  });

  function* crc32(bytes) {
    let crc = 0xffffffff;
    for (let i = 0; i < bytes.length; i++) {
      crc = crcTable[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
      if (i % PIECE === 0) yield;
    }
    return ~crc >>> 0;
  }

  const powers = Float64Array.from({ length: 32 }, (_, exponent) => 2 ** (exponent - 25));

  /** IEEE half precision to single: the same number, in more bits. Weights are finite. */
  function halfToFloat(half) {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent === 0 ? fraction * powers[1] : (1024 + fraction) * powers[exponent];
    return half & 0x8000 ? -size : size;
  }

  /** @returns {Error} in words for readers */
  function damaged(model, reason) {
    return new Error(`The model “${model.name}” is damaged or of another version of the book: ${reason}.`);
  }

  function* bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) {
      bytes[i] = text.charCodeAt(i);
      if (i % PIECE === 0) yield;
    }
    return bytes;
  }

  /** All weights of a model in one Float32Array, checked against its header. */
  function* decode(model) {
    if (model.format !== 1) throw damaged(model, `its format is ${model.format}, and this page reads format 1`);
    const parts = [model.update, model.encoder, model.decoder, model.prior];
    const convolutions = [...flat(parts.flatMap((layers) => layers ?? []))];
    const read = READERS[model.precision];
    if (!read) throw damaged(model, `it does not know weights in ${model.precision}`);
    let bytes;
    try {
      bytes = yield* bytesOf(model.weights);
    } catch {
      throw damaged(model, "its weights are no base64 text");
    }
    const expected = read.bytes(convolutions);
    if (bytes.length !== expected) {
      throw damaged(model, `it has ${bytes.length} bytes of weights instead of ${expected}`);
    }
    if ((yield* crc32(bytes)) !== model.crc32) throw damaged(model, "the checksum of its weights is wrong");
    return yield* read.weights(new DataView(bytes.buffer), convolutions);
  }

  /** The convolutions of a list of layers, in the order of their weights. */
  function* flat(layers) {
    for (const layer of layers) {
      if (layer.op === "residual") yield* flat(layer.layers);
      else if (layer.op === "conv") yield layer;
    }
  }

  const sum = (items, count) => items.reduce((total, item) => total + count(item), 0);
  const weightCount = (layer) => layer.out * layer.in * layer.kernel ** 2;
  const biasCount = (layer) => (layer.bias ? layer.out : 0);
  const countAll = (layers) => sum(layers, (layer) => weightCount(layer) + biasCount(layer));

  /** Whole numbers of `bits` bits, at most 16, one right behind the other; then scales and biases. */
  function inBits(bits) {
    const bytes = (layers) => Math.ceil((bits * sum(layers, weightCount)) / 8);
    const numberAt = (view, index) => {
      const first = index * bits, byte = first >> 3;
      // Three bytes are there: behind the numbers come the scales.
      const three = (view.getUint16(byte) << 8) | view.getUint8(byte + 2);
      return ((three >> (24 - bits - (first & 7))) & ((1 << bits) - 1)) - (1 << (bits - 1));
    };
    return {
      bytes: (layers) => bytes(layers) + bytesOfFloats(layers),
      weights: (view, layers) => scaled(view, layers, bytes(layers), (index) => numberAt(view, index)),
    };
  }

  // How many bytes the weights of some layers take, and how to read them; vnca/export.py writes them.
  const READERS = {
    float16: {
      bytes: (layers) => 2 * countAll(layers),
      weights: (view, layers) => numbers(countAll(layers), (i) => halfToFloat(view.getUint16(2 * i, true))),
    },
    float32: {
      bytes: (layers) => 4 * countAll(layers),
      weights: (view, layers) => numbers(countAll(layers), (i) => view.getFloat32(4 * i, true)),
    },
    int10: inBits(10),
    int12: inBits(12),
    int14: inBits(14),
    int16: {
      bytes: (layers) => 2 * sum(layers, weightCount) + bytesOfFloats(layers),
      weights: (view, layers) =>
        scaled(view, layers, 2 * sum(layers, weightCount), (index) => view.getInt16(2 * index, true)),
    },
  };
  const bytesOfFloats = (layers) => 4 * sum(layers, (layer) => layer.out + biasCount(layer));

  function* numbers(count, at) {
    const weights = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      weights[i] = at(i);
      if (i % PIECE === 0) yield;
    }
    return weights;
  }

  /** Whole numbers, each times the scale of its output channel; the scales and biases begin at byte `float`. */
  function* scaled(view, layers, float, numberAt) {
    const weights = new Float32Array(countAll(layers));
    let at = 0, index = 0;
    const nextFloat = () => {
      float += 4;
      return view.getFloat32(float - 4, true);
    };
    for (const layer of layers) {
      const row = layer.in * layer.kernel ** 2;
      for (let output = 0; output < layer.out; output++) {
        const scale = nextFloat();
        for (let input = 0; input < row; input++) weights[at++] = numberAt(index++) * scale;
        yield;
      }
      for (let bias = 0; bias < biasCount(layer); bias++) weights[at++] = nextFloat();
    }
    return weights;
  }

  let compiled;

  /** A fresh memory with the kernel that works on it. */
  async function kernelWith(bytes) {
    if (!vncaLive.kernelBytes) {
      const floats = new Float32Array(Math.ceil(bytes / 4));
      return { floats, ...vncaLive.plainKernel(floats) };
    }
    compiled ??= WebAssembly.compile(vncaLive.finish(bytesOf(vncaLive.kernelBytes)));
    const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
    const instance = await WebAssembly.instantiate(await compiled, { env: { memory } });
    return { floats: new Float32Array(memory.buffer), ...instance.exports };
  }

  /** The layers of one model in the memory of one kernel, with a grid for their input. */
  class Network {
    /**
     * @param {object} model what `vncaLive.addModel` got
     * @param {object[]} layers its `update`, `encoder`, `decoder` or `prior`
     * @param {number} size the largest side of an input grid
     * @param {number} [channels] of the input grid; the layers read the first ones
     * @returns {Promise<Network>} rejects with a readable Error if the model is damaged
     */
    static async load(model, layers, size, channels = layers[0].in) {
      const weights = await vncaLive.inSlices(decode(model));
      const network = new Network();
      let bytes = 0;
      const reserve = (count) => {
        const address = bytes;
        bytes += (4 * count + 15) & ~15;
        return address;
      };
      let columns = 0, scratch = 0, used = 0;
      const fills = [];

      // Gives every layer its place in memory, for grids of the largest size; smaller ones fit in.
      const place = (list, side, channels) => list.map((layer) => {
        if (layer.op === "residual") return { layers: place(layer.layers, side, channels) };
        if (layer.op in MOVES) {
          const moves = MOVES[layer.op];
          side = moves.sizeAfter(layer, side);
          channels = moves.channelsAfter(layer, channels);
          scratch = Math.max(scratch, channels * strideOf(side));
          return { ...layer, moves, channels };
        }
        if (layer.op !== "conv") throw damaged(model, `it has a layer “${layer.op}”, which this page does not know`);
        const mode = MODES[layer.activation];
        if (mode === undefined) throw damaged(model, `it has an activation “${layer.activation}”`);
        const inputs = layer.in * layer.kernel ** 2, outputs = wholeBlocks(layer.out);
        const outSize = outSizeOf(layer, side);
        const placed = { ...layer, mode, inputs, blocks: outputs / 4 };
        placed.weights = reserve(outputs * inputs);
        placed.offset = reserve(outputs);
        fills.push([placed, used]);
        used += weightCount(layer) + biasCount(layer);
        if (!isPointwise(layer)) columns = Math.max(columns, inputs * strideOf(outSize));
        scratch = Math.max(scratch, outputs * strideOf(outSize));
        side = outSize;
        channels = layer.out;
        return placed;
      });
      network.layers = place(layers, size, layers[0].in);
      network.grid = reserve(wholeBlocks(channels) * strideOf(size));
      network.columns = reserve(columns);
      network.scratch = [reserve(scratch), reserve(scratch), reserve(scratch)];
      network.kernel = await kernelWith(bytes);
      for (const [layer, first] of fills) await vncaLive.inSlices(fill(network.kernel.floats, layer, weights, first));
      return network;
    }

    /** The floats of one channel of the input grid, without its padding. */
    channel(index, size) {
      return this.channelAt(this.grid, index, size);
    }

    channelAt(address, index, size) {
      const first = (address >> 2) + index * strideOf(size);
      return this.kernel.floats.subarray(first, first + size * size);
    }

    /**
     * Runs the layers on the input grid, a slice at each `next()`.
     *
     * @param {number} size side of the input grid
     * @param {boolean} add whether the result is added to the input grid
     * @returns {Generator<void, {address: number, size: number}>} where the result is
     */
    *run(size, add) {
      return yield* this.#run(this.layers, this.grid, size, add);
    }

    *#run(layers, source, size, add) {
      let here = source;
      for (const layer of layers) {
        if (layer.layers) {
          yield* this.#run(layer.layers, here, size, true); // a residual block adds to its own input
          continue;
        }
        const adds = add && layer === layers.at(-1);
        const target = adds ? source : this.scratch.find((address) => address !== here && address !== source);
        if (layer.moves) {
          layer.moves.move(this, layer, here, target, size);
          yield;
          [here, size] = [target, layer.moves.sizeAfter(layer, size)];
          continue;
        }
        yield* this.#convolve(layer, here, target, size, adds ? MODES.add : layer.mode);
        here = target;
        size = outSizeOf(layer, size);
      }
      return { address: here, size };
    }

    *#convolve(layer, source, target, size, mode) {
      const { kernel, columns } = this;
      const outSize = outSizeOf(layer, size), stride = strideOf(outSize), cells = wholeCells(outSize);
      let from = source;
      if (!isPointwise(layer)) {
        kernel.im2col(
          source, columns, layer.in, size, strideOf(size), layer.kernel, layer.stride, layer.padding, outSize, stride,
        );
        from = columns;
        yield;
      }
      const slice = Math.max(8, Math.floor(SLICE / (layer.inputs * layer.blocks * 4)) & ~7);
      for (let first = 0; first < cells; first += slice) {
        const last = Math.min(cells, first + slice);
        kernel.matmul(
          layer.weights, layer.offset, from, target, layer.blocks, layer.inputs, stride, first, last, mode,
        );
        yield;
      }
    }
  }

  // Layers that only move numbers, from `source` to `target`: what becomes of the side of the grid and of the channels,
  // and how. Here `layer.channels` counts those after it.
  const MOVES = {
    /** Each cell goes to the upper left of `by` × `by` cells; the others are zero. */
    spread: {
      sizeAfter: (layer, size) => size * layer.by,
      channelsAfter: (layer, channels) => channels,
      move(network, layer, source, target, size) {
        const after = size * layer.by;
        for (let channel = 0; channel < layer.channels; channel++) {
          const cells = network.channelAt(source, channel, size);
          const spread = network.channelAt(target, channel, after).fill(0);
          cells.forEach((value, cell) => {
            spread[layer.by * (Math.floor(cell / size) * after + (cell % size))] = value;
          });
        }
      },
    },
    /** A vector, which is a grid of one cell, becomes a grid of `size` × `size`, channel by channel. */
    unflatten: {
      sizeAfter: (layer) => layer.size,
      channelsAfter: (layer, channels) => channels / layer.size ** 2,
      move(network, layer, source, target, size) {
        const cells = layer.size ** 2;
        for (let channel = 0; channel < layer.channels; channel++) {
          const grid = network.channelAt(target, channel, layer.size);
          for (let cell = 0; cell < cells; cell++) {
            grid[cell] = network.channelAt(source, channel * cells + cell, size)[0];
          }
        }
      },
    },
  };

  const isPointwise = (layer) => layer.kernel === 1 && layer.stride === 1;

  /** Copies the weights of a layer, (out, in, kernel, kernel), to where the kernel wants them: see `matmul`. */
  function* fill(floats, layer, weights, first) {
    const at = layer.weights >> 2;
    for (let output = 0; output < layer.out; output++) {
      const block = at + (output >> 2) * layer.inputs * 4 + (output & 3);
      for (let input = 0; input < layer.inputs; input++) {
        floats[block + 4 * input] = weights[first + output * layer.inputs + input];
      }
      yield;
    }
    if (layer.bias) {
      const bias = first + layer.out * layer.inputs;
      floats.set(weights.subarray(bias, bias + layer.out), layer.offset >> 2);
    }
  }

  /**
   * Runs a generator to its end, for work that is too short to be cut.
   *
   * @returns what the generator returns
   */
  vncaLive.finish = (generator) => {
    let result = generator.next();
    while (!result.done) result = generator.next();
    return result.value;
  };
  /**
   * Runs a generator to its end in slices of a few milliseconds, so that the page stays awake.
   *
   * @returns {Promise} what the generator returns
   */
  vncaLive.inSlices = async (generator) => {
    for (;;) {
      const deadline = performance.now() + BUDGET;
      while (performance.now() < deadline) {
        const { done, value } = generator.next();
        if (done) return value;
      }
      await new Promise((resolve) => setTimeout(resolve));
    }
  };

  vncaLive.Network = Network;
})();
