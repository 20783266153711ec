// A digit drawn by hand, and the same digit as the images have it that the models learned from.
(() => {
  "use strict";
  const SIZE = 28; // side of an image in pixels
  const BOX = 20; // side of the square in its middle that a digit fills
  const PEN = 1.2; // radius in pixels
  const DOT = 4; // pixels: what is smaller than this is not enlarged
  const FINE = 0.25; // pixels between two points on a stroke

  /** Strokes of a pen; places are [row, column], and (0, 0) is the center of the first pixel. */
  class Drawing {
    #strokes = [];
    #open = false;

    /** @param {number[][][]} strokes that are there already, as lists of places */
    constructor(strokes = []) {
      for (const stroke of strokes) {
        for (const [row, col] of stroke) this.to(row, col);
        this.lift();
      }
    }

    /** Draws on to a place, or begins a stroke there. */
    to(row, col) {
      if (!this.#open) this.#strokes.push([]);
      this.#open = true;
      this.#strokes.at(-1).push([row, col]);
    }

    /** Ends the stroke. */
    lift() {
      this.#open = false;
    }

    /** @returns {Float32Array} (784,) pixels of 0 and 1, where it was drawn */
    image() {
      return inked(this.#points());
    }

    /** @returns {Float32Array} (784,) the same with its longer side fitted to 20 pixels and its mass in the middle */
    fitted() {
      const points = this.#points();
      if (!points.length) return inked(points);
      const sides = [0, 1].map((axis) => {
        const along = points.map((point) => point[axis]);
        return Math.max(...along) - Math.min(...along);
      });
      const side = Math.max(...sides) + 2 * PEN;
      const scale = side < DOT ? 1 : (BOX - 2 * PEN) / (side - 2 * PEN);
      const center = [0, 1].map((axis) => points.reduce((total, point) => total + point[axis], 0) / points.length);
      const middle = (SIZE - 1) / 2;
      return inked(this.#points(scale).map((point) => point.map((at, axis) => middle + at - scale * center[axis])));
    }

    /** Points close together on all strokes, after scaling. */
    #points(scale = 1) {
      return this.#strokes.flatMap((stroke) => stroke.flatMap((end, i) => {
        const start = stroke[i - 1] ?? end;
        const pieces = Math.max(1, Math.ceil((scale * Math.hypot(end[0] - start[0], end[1] - start[1])) / FINE));
        return Array.from({ length: pieces }, (_, piece) => {
          const share = (piece + 1) / pieces;
          return [0, 1].map((axis) => scale * (start[axis] + share * (end[axis] - start[axis])));
        });
      }));
    }
  }

  /** Every pixel 1 whose center is within the pen's radius of a point. */
  function inked(points) {
    const image = new Float32Array(SIZE * SIZE);
    const reach = (at) => [Math.max(0, Math.ceil(at - PEN)), Math.min(SIZE - 1, Math.floor(at + PEN))];
    for (const [row, col] of points) {
      const [top, bottom] = reach(row), [left, right] = reach(col);
      for (let y = top; y <= bottom; y++) {
        for (let x = left; x <= right; x++) if (Math.hypot(y - row, x - col) <= PEN) image[y * SIZE + x] = 1;
      }
    }
    return image;
  }

  vncaLive.Drawing = Drawing;
})();
