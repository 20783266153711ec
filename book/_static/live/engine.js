// Cells, encoder, decoder and prior: the operations of vnca/cells.py, vnca/decoders.py, vnca/growing.py, vnca/vae.py and
// vnca/priors.py on a model that vnca/export.py wrote. A grid is counted in rows from the top and columns from the left.
(() => {
  "use strict";

  /** A seeded source of randomness (mulberry32, and Box-Muller for the normal distribution). */
  class Random {
    #state;

    /** @param {number} seed a whole number; the same one gives the same numbers */
    constructor(seed) {
      this.#state = seed >>> 0;
    }

    /** @returns {number} uniform in [0, 1) */
    uniform() {
      this.#state = (this.#state + 0x6d2b79f5) >>> 0;
      let t = this.#state;
      t = Math.imul(t ^ (t >>> 15), t | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    }

    /**
     * @param {number} count
     * @returns {Float32Array} (count,) independent standard normal numbers, for example a latent
     */
    normal(count) {
      return Float32Array.from({ length: count }, () => {
        const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
        return radius * Math.cos(2 * Math.PI * this.uniform());
      });
    }
  }

  /** The model of that name with its "update", "encoder", "decoder" or "prior", or an Error. */
  function modelWith(part, name) {
    const model = vncaLive.models[name];
    if (!model) throw new Error(`The model “${name}” is missing or damaged: its script added nothing.`);
    if (!model[part]) throw new Error(`The model “${name}” has no ${part}.`);
    return model;
  }

  /**
   * One grid of cells and the update that they all follow.
   *
   * Work that takes time comes as generators. Each `next()` computes a slice of a few milliseconds at most; between two
   * slices of a step the grid must not be changed. `vncaLive.finish(generator)` runs one at once.
   */
  class Engine {
    #network;
    #rule;
    #seed;
    #genome;
    #aging;
    #random = new Random(0);

    /**
     * @param {string} name of a model whose script is loaded
     * @returns {Promise<Engine>} rejects with a readable Error if the model is missing or damaged
     */
    static async load(name) {
      const model = modelWith("update", name);
      const engine = new Engine();
      engine.#network = await vncaLive.Network.load(model, model.update, model.grid, model.channels);
      engine.#rule = model.rule;
      engine.#seed = model.seed;
      engine.#genome = model.genome; // how many of the last channels, if any; such cells mature
      engine.#aging = model.aging; // side of the grid on which cells age, if any
      engine.name = model.name;
      engine.channels = model.channels;
      engine.latentSize = model.latentSize;
      engine.imageSize = model.image;
      engine.border = model.border;
      engine.largest = model.grid; // side of the largest grid
      engine.schedule = model.schedule; // [["seed" | "step" | "double", side of the grid after it], ...]
      engine.fireRate = model.rule?.fireRate; // of an automaton; may be changed
      engine.clear(model.seed.size);
      return engine;
    }

    /** Starts over with `size` × `size` cells whose channels are all zero. */
    clear(size) {
      if (!(size >= 1 && size <= this.largest)) {
        throw new RangeError(`a grid has a side of 1 to ${this.largest} cells, not ${size}`);
      }
      this.size = size;
      for (let channel = 0; channel < this.channels; channel++) this.#channel(channel).fill(0);
    }

    /**
     * Starts over with copies of a latent in every cell: in the last channels, or before the age if that is the last.
     *
     * @param {Float32Array} z (latentSize,)
     * @param {number} size side of the grid; by default what the model's growth starts with
     */
    seed(z, size = this.#seed.size) {
      if (z.length !== this.latentSize) {
        throw new RangeError(`a latent of this model has ${this.latentSize} numbers, not ${z.length}`);
      }
      this.clear(size);
      const first = this.#aging ? 0 : this.channels - this.latentSize;
      z.forEach((value, index) => this.#channel(first + index).fill(value));
    }

    /**
     * Puts the seed of an automaton into one cell: its channels from opacity on become 1, those before it 0, and the
     * first hidden one becomes a number that the seed carries.
     */
    plant(row, col, number = 1) {
      const { ones, number: carrier } = this.#seed;
      const values = Float32Array.from({ length: this.channels }, (_, channel) => Number(channel >= ones));
      values[carrier] = number;
      this.writeCell(row, col, values);
    }

    /** One step of all cells, slice by slice. */
    *step() {
      if (this.#rule) yield* this.#stepOfLiving();
      else if (this.#genome) yield* this.#stepOfMaturing();
      else if (this.#aging === this.size) yield* this.#stepOfAging();
      else yield* this.#network.run(this.size, true);
    }

    /** A step of cells that have a genome and, in channel 1, an age. */
    *#stepOfMaturing() {
      const written = this.channels - this.#genome - 1; // channels: the pixel and all after the age
      const { address } = yield* this.#network.run(this.size, false);
      this.#live(address, Array.from({ length: written }, (_, index) => (index === 0 ? 0 : index + 1)), 1);
      this.#inherit();
    }

    /** A step of cells of the last grid, whose age is the last channel. */
    *#stepOfAging() {
      const age = this.channels - 1;
      const { address } = yield* this.#network.run(this.size, false);
      this.#live(address, Array.from({ length: age }, (_, index) => index), age);
    }

    /** Adds a change to these channels, one after another, less of it the older a cell is; then all grow older. */
    #live(address, channels, ageChannel) {
      const age = this.#channel(ageChannel);
      const youth = age.map((value) => 1 - value);
      channels.forEach((channel, index) => {
        const state = this.#channel(channel);
        const change = this.#network.channelAt(address, index, this.size);
        for (let cell = 0; cell < state.length; cell++) state[cell] += youth[cell] * change[cell];
      });
      for (let cell = 0; cell < age.length; cell++) age[cell] += Math.min(1 / this.size, youth[cell]);
    }

    /** A cell that has lost its genome, the last channels, takes the mean of its neighbors'; all others keep theirs. */
    #inherit() {
      const { size } = this;
      const genome = Array.from({ length: this.#genome }, (_, i) => this.#channel(this.channels - this.#genome + i));
      const has = Uint8Array.from(genome[0], (_, cell) => Number(genome.some((channel) => channel[cell] !== 0)));
      const heirs = [];
      has.forEach((alive, cell) => {
        if (alive) return;
        const row = Math.floor(cell / size), col = cell % size, parents = [];
        for (let y = Math.max(0, row - 1); y <= Math.min(size - 1, row + 1); y++) {
          for (let x = Math.max(0, col - 1); x <= Math.min(size - 1, col + 1); x++) {
            if (has[y * size + x]) parents.push(y * size + x);
          }
        }
        if (parents.length) heirs.push([cell, parents]);
      });
      // Heirs are no parents, so that writing one changes nothing for the others.
      for (const channel of genome) {
        for (const [cell, parents] of heirs) {
          channel[cell] = parents.reduce((total, parent) => total + channel[parent], 0) / parents.length;
        }
      }
    }

    /** A step in which a random part of the cells fires, and cells without a living neighbor are emptied. */
    *#stepOfLiving() {
      const before = this.#living();
      const { address } = yield* this.#network.run(this.size, false);
      const fires = Float32Array.from(before, () => Number(this.#random.uniform() < this.fireRate));
      for (let channel = 0; channel < this.channels; channel++) {
        const state = this.#channel(channel);
        const change = this.#network.channelAt(address, channel, this.size);
        for (let cell = 0; cell < state.length; cell++) state[cell] += fires[cell] * change[cell];
      }
      const after = this.#living();
      for (let channel = 0; channel < this.channels; channel++) {
        const state = this.#channel(channel);
        for (let cell = 0; cell < state.length; cell++) if (!(before[cell] && after[cell])) state[cell] = 0;
      }
    }

    /** Which cells live, (size * size,) of 0 and 1: those with enough opacity in their 3 × 3 neighborhood. */
    #living() {
      const { channel, threshold } = this.#rule.living;
      const opacity = this.#channel(channel), { size } = this;
      const alive = new Uint8Array(size * size);
      for (let row = 0; row < size; row++) {
        for (let col = 0; col < size; col++) {
          if (!(opacity[row * size + col] > threshold)) continue;
          for (let y = Math.max(0, row - 1); y <= Math.min(size - 1, row + 1); y++) {
            for (let x = Math.max(0, col - 1); x <= Math.min(size - 1, col + 1); x++) alive[y * size + x] = 1;
          }
        }
      }
      return alive;
    }

    /** Each cell divides into 2 × 2 exact copies. */
    double() {
      const { size } = this;
      const channels = Array.from({ length: this.channels }, (_, channel) => this.readChannel(channel));
      this.clear(2 * size);
      channels.forEach((old, channel) => {
        const grown = this.#channel(channel);
        for (let cell = 0; cell < grown.length; cell++) {
          const row = Math.floor(cell / (2 * size)), col = cell % (2 * size);
          grown[cell] = old[(row >> 1) * size + (col >> 1)];
        }
      });
    }

    /**
     * What an entry of `schedule` says, slice by slice; the seed needs its latent.
     *
     * @param {"seed" | "step" | "double"} event
     * @param {Float32Array} [z] (latentSize,)
     */
    *perform(event, z) {
      if (event === "step") yield* this.step();
      else if (event === "double") this.double();
      else this.seed(z);
    }

    /** A whole growth from a latent (latentSize,), by the model's schedule, slice by slice. */
    *grow(z) {
      for (const [event] of this.schedule) yield* this.perform(event, z);
    }

    /** Sets a rectangle of cells to zero in every channel; what reaches past the border is cut off. */
    damage(row, col, height, width) {
      const { size } = this;
      const top = Math.max(0, row), bottom = Math.min(size, row + height);
      const left = Math.max(0, col), right = Math.min(size, col + width);
      if (left >= right) return;
      for (let channel = 0; channel < this.channels; channel++) {
        const state = this.#channel(channel);
        for (let y = top; y < bottom; y++) state.fill(0, y * size + left, y * size + right);
      }
    }

    /** Sets a disc of cells to zero in every channel: those whose centers are within `radius` of that of a cell. */
    damageDisc(row, col, radius) {
      for (let dy = -Math.floor(radius); dy <= radius; dy++) {
        const reach = Math.floor(Math.sqrt(radius ** 2 - dy ** 2));
        this.damage(row + dy, col - reach, 1, 2 * reach + 1);
      }
    }

    /** @returns {Float32Array} (channels,), a copy */
    readCell(row, col) {
      const cell = this.#cell(row, col);
      return Float32Array.from({ length: this.channels }, (_, channel) => this.#channel(channel)[cell]);
    }

    /** @param {Float32Array} values (channels,) */
    writeCell(row, col, values) {
      const cell = this.#cell(row, col);
      values.forEach((value, channel) => { this.#channel(channel)[cell] = value; });
    }

    /** @returns {Float32Array} (size * size,), a copy, row by row; channel 0 holds the logits of the pixels */
    readChannel(channel) {
      return this.#channel(channel).slice();
    }

    /** @param {Float32Array} values (size * size,), row by row */
    writeChannel(channel, values) {
      this.#channel(channel).set(values);
    }

    /** @returns {{size: number, channels: Float32Array[]}} a copy of the grid, for `restore` */
    snapshot() {
      return {
        size: this.size,
        channels: Array.from({ length: this.channels }, (_, channel) => this.readChannel(channel)),
      };
    }

    restore(snapshot) {
      this.clear(snapshot.size);
      snapshot.channels.forEach((values, channel) => this.writeChannel(channel, values));
    }

    /** @returns {Float32Array} (imageSize * imageSize,) channel 0 of a full grid without its border, row by row */
    logits() {
      const { imageSize, border } = this;
      if (this.size !== imageSize + 2 * border) {
        throw new Error(`only a grid of ${imageSize + 2 * border} cells has an image, and this one has ${this.size}`);
      }
      return inside(this.#channel(0), imageSize, border);
    }

    #channel(index) {
      return this.#network.channel(index, this.size);
    }

    #cell(row, col) {
      if (!(row >= 0 && row < this.size && col >= 0 && col < this.size)) {
        throw new RangeError(`there is no cell (${row}, ${col}) in a grid of ${this.size} × ${this.size}`);
      }
      return row * this.size + col;
    }
  }

  /** From an image to a Gaussian over latents. */
  class Encoder {
    #network;

    /**
     * @param {string} name of a model whose script is loaded
     * @returns {Promise<Encoder>} rejects with a readable Error if the model is missing or damaged
     */
    static async load(name) {
      const model = modelWith("encoder", name);
      const encoder = new Encoder();
      encoder.latentSize = model.latentSize;
      encoder.imageSize = model.image;
      encoder.border = model.border;
      encoder.#network = await vncaLive.Network.load(model, model.encoder, model.image + 2 * model.border);
      return encoder;
    }

    /**
     * Encodes an image, slice by slice.
     *
     * @param {Float32Array} image (imageSize * imageSize,) in [0, 1], row by row, ink is 1
     * @returns {Generator<void, {mean: Float32Array, logScale: Float32Array}>} (latentSize,) each
     */
    *encode(image) {
      const { imageSize, border, latentSize } = this;
      if (image.length !== imageSize ** 2) {
        throw new RangeError(`an image has ${imageSize ** 2} pixels, not ${image.length}`);
      }
      const size = imageSize + 2 * border;
      const grid = this.#network.channel(0, size).fill(0);
      for (let row = 0; row < imageSize; row++) {
        grid.set(image.subarray(row * imageSize, (row + 1) * imageSize), (row + border) * size + border);
      }
      const { address } = yield* this.#network.run(size, false);
      const value = (index) => this.#network.channelAt(address, index, 1)[0];
      return {
        mean: Float32Array.from({ length: latentSize }, (_, index) => value(index)),
        logScale: Float32Array.from({ length: latentSize }, (_, index) => value(latentSize + index)),
      };
    }
  }

  /** From a latent to an image, all pixels at once. */
  class Decoder {
    #network;

    /**
     * @param {string} name of a model whose script is loaded
     * @returns {Promise<Decoder>} rejects with a readable Error if the model is missing or damaged
     */
    static async load(name) {
      const model = modelWith("decoder", name);
      const decoder = new Decoder();
      decoder.latentSize = model.latentSize;
      decoder.imageSize = model.image;
      decoder.border = model.border;
      decoder.latents = model.latents; // [[number of the latent, pixels that it changes], ...], most pixels first
      decoder.#network = await vncaLive.Network.load(model, model.decoder, 1);
      return decoder;
    }

    /**
     * Decodes a latent, slice by slice.
     *
     * @param {Float32Array} z (latentSize,)
     * @returns {Generator<void, Float32Array>} (imageSize * imageSize,) logits, row by row
     */
    *decode(z) {
      if (z.length !== this.latentSize) {
        throw new RangeError(`a latent of this model has ${this.latentSize} numbers, not ${z.length}`);
      }
      z.forEach((value, index) => { this.#network.channel(index, 1)[0] = value; });
      const { address, size } = yield* this.#network.run(1, false);
      return inside(this.#network.channelAt(address, 0, size), this.imageSize, this.border);
    }
  }

  /** Where latents come from if not from the standard normal: a mixture of Gaussians. */
  class Prior {
    #network;
    #shares;
    #used;

    /**
     * @param {string} name of a model whose script is loaded
     * @returns {Promise<Prior>} rejects with a readable Error if the model is missing or damaged
     */
    static async load(name) {
      const model = modelWith("prior", name);
      const prior = new Prior();
      prior.latentSize = model.latentSize;
      prior.#shares = model.shares; // of the components, which add up to one
      prior.#used = model.used; // which numbers of the latent the components are about; the others are standard normal
      prior.#network = await vncaLive.Network.load(model, model.prior, 1);
      return prior;
    }

    /** @returns {number} a component, drawn by its share */
    choose(random) {
      let left = random.uniform();
      const chosen = this.#shares.findIndex((share) => (left -= share) < 0);
      return chosen < 0 ? this.#shares.length - 1 : chosen; // shares are rounded
    }

    /**
     * Moves standard normal noise to a component, slice by slice.
     *
     * @param {Float32Array} noise (latentSize,)
     * @param {number} component
     * @returns {Generator<void, Float32Array>} a latent (latentSize,)
     */
    *place(noise, component) {
      const used = this.#used;
      used.forEach((number, index) => { this.#network.channel(index, 1)[0] = noise[number]; });
      const { address } = yield* this.#network.run(1, false);
      const z = noise.slice();
      used.forEach((number, index) => {
        z[number] = this.#network.channelAt(address, component * used.length + index, 1)[0];
      });
      return z;
    }
  }

  /** A copy of what is inside a border. */
  function inside(grid, size, border) {
    const image = new Float32Array(size ** 2), side = size + 2 * border;
    for (let row = 0; row < size; row++) {
      const first = (row + border) * side + border;
      image.set(grid.subarray(first, first + size), row * size);
    }
    return image;
  }

  Object.assign(vncaLive, { Engine, Encoder, Decoder, Prior, Random });
})();
