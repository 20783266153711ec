// Completions of an image: the two samplers of chapter 6, pseudo-Gibbs and Metropolis-within-Gibbs.
//
// Images, masks and logits are (784,), row by row; a mask is 1 where a pixel is observed. A Gaussian is
// { mean, logScale }. A chain is { z, logits, whole, q }: its latent, what grows from it, and the image that was
// completed last with what the encoder says about it.
(() => {
  "use strict";
  const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
  const softplus = (logit) => Math.max(0, logit) + Math.log1p(Math.exp(-Math.abs(logit)));
  const sum = (values, term) => values.reduce((total, value, i) => total + term(value, i), 0);

  class Inpainter {
    #engine;
    #encoder;
    #random;
    #bank = []; // logits of latents of the prior

    /** @param {Engine} engine grows what is proposed; its grid may be used between two calls, not during one */
    constructor(engine, encoder, random) {
      this.#engine = engine;
      this.#encoder = encoder;
      this.#random = random;
    }

    /** How many images of the prior there are for chains to begin with. */
    get known() {
      return this.#bank.length;
    }

    /** Grows so many more of them. */
    *learn(count) {
      for (let i = 0; i < count; i++) {
        this.#bank.push(yield* this.decode(this.#random.normal(this.#engine.latentSize)));
      }
    }

    /** @returns {Generator<void, Float32Array>} the logits of a latent */
    *decode(z) {
      yield* this.#engine.grow(z);
      return this.#engine.logits();
    }

    /** log p(x | z) of the pixels in the mask. */
    logLikelihood(x, observed, logits) {
      return sum(logits, (logit, i) => (observed[i] ? x[i] * logit - softplus(logit) : 0));
    }

    /** Log density of a latent under a Gaussian. */
    logNormal(z, { mean, logScale }) {
      const half = 0.5 * Math.log(2 * Math.PI);
      return sum(z, (value, i) => -0.5 * ((value - mean[i]) / Math.exp(logScale[i])) ** 2 - logScale[i] - half);
    }

    /** log of [p(x, z') q(z | x)] / [p(x, z) q(z' | x)] for a whole image x, with q what the encoder says about it. */
    logRatio(x, q, old, proposed) {
      const all = new Uint8Array(x.length).fill(1), zeros = new Float32Array(old.z.length);
      const prior = { mean: zeros, logScale: zeros };
      const score = ({ z, logits }) =>
        this.logNormal(z, prior) + this.logLikelihood(x, all, logits) - this.logNormal(z, q);
      return score(proposed) - score(old);
    }

    /** The image with its missing pixels drawn from p(x_m | z). */
    complete(x, observed, logits) {
      return x.map((value, i) => (observed[i] ? value : Number(this.#random.uniform() < sigmoid(logits[i]))));
    }

    /** The image with the probabilities of its missing pixels. */
    probabilities(x, observed, logits) {
      return x.map((value, i) => (observed[i] ? value : sigmoid(logits[i])));
    }

    /** A latent from a Gaussian whose scale is multiplied by a temperature, from given standard normal noise. */
    latent({ mean, logScale }, noise, temperature = 1) {
      return mean.map((value, i) => value + temperature * Math.exp(logScale[i]) * noise[i]);
    }

    /** So many chains, each from another of those images of the prior that suit the observed pixels best. */
    *begin(x, observed, count) {
      const suits = new Map();
      for (const logits of this.#bank) {
        suits.set(logits, this.logLikelihood(x, observed, logits));
        yield;
      }
      const best = [...this.#bank].sort((a, b) => suits.get(b) - suits.get(a));
      const starts = Array.from({ length: count }, (_, i) => ({ logits: best[i % best.length] }));
      return yield* this.turns(x, observed, starts, true);
    }

    /** The chains after a turn of each; see `turn`. */
    *turns(x, observed, chains, trusting) {
      const after = [];
      for (const chain of chains) after.push(yield* this.turn(x, observed, chain, trusting));
      return after;
    }

    /**
     * The chain after one turn: complete the image, ask the encoder for a latent, grow it, and accept it or not.
     *
     * @param {boolean} trusting accepts always, which makes the turn one of pseudo-Gibbs
     */
    *turn(x, observed, chain, trusting) {
      const whole = this.complete(x, observed, chain.logits);
      const q = yield* this.#encoder.encode(whole);
      const z = this.latent(q, this.#random.normal(q.mean.length));
      const proposed = { z, logits: yield* this.decode(z) };
      const accepted = trusting || Math.log(this.#random.uniform()) < this.logRatio(whole, q, chain, proposed);
      return { ...(accepted ? proposed : { z: chain.z, logits: chain.logits }), whole, q, accepted };
    }
  }

  vncaLive.Inpainter = Inpainter;
})();
