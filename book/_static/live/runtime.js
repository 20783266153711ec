// What demos share: the stage with its controls, the screen of cells, and the player that gives steps their time.
(() => {
  "use strict";
  const BUDGET = 6; // ms of computing in a frame; the last slice and the drawing come on top
  const READOUT = 1000; // ms between two readings of the speed
  // By brightness, each as the bytes of a pixel: red, green, blue and opacity.
  const GRAYS = new Uint32Array(Uint8Array.from({ length: 1024 }, (_, i) => (i % 4 < 3 ? i >> 2 : 255)).buffer);

  function make(tag, className, parent, properties = {}) {
    const element = Object.assign(document.createElement(tag), { className, ...properties });
    parent.append(element);
    return element;
  }

  const WAYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }; // rows, columns
  const ENDS = ["pointerup", "pointercancel", "lostpointercapture"]; // of a gesture

  /** A square grid of cells on a canvas, one pixel for a cell: digits in white on black, colors on paper of the page. */
  class Screen {
    #canvas;
    #caption;
    #context;
    #cursor;
    #image;
    #size;
    #at;

    constructor(parent, label, size) {
      const figure = make("figure", "live-figure", parent);
      const frame = make("div", "live-screen", figure);
      this.#caption = make("figcaption", "", figure);
      this.#canvas = make("canvas", "", frame);
      this.#canvas.setAttribute("role", "img");
      this.#canvas.setAttribute("aria-label", label);
      this.#cursor = make("div", "live-cursor", frame);
      this.#context = this.#canvas.getContext("2d", { willReadFrequently: true });
      this.#at = { row: size >> 1, col: size >> 1 };
      this.readPaper();
      this.resize(size);
    }

    get size() {
      return this.#size;
    }

    /** The words below the screen; without any it has none. */
    set caption(text) {
      if (this.#caption.textContent !== text) this.#caption.textContent = text;
    }

    /** Whether what is on the screen belongs to an earlier question: then it is pale. */
    set old(value) {
      this.#canvas.classList.toggle("live-old", value);
    }

    /** Changes the side of the grid; the screen stays as large as it is, and the cursor where it is on it. */
    resize(size) {
      if (size === this.#size) return;
      const by = size / (this.#size ?? size);
      this.#size = this.#canvas.width = this.#canvas.height = size;
      this.#image = this.#context.createImageData(size, size);
      this.#moveTo(Math.floor(this.#at.row * by), Math.floor(this.#at.col * by));
    }

    /** Reads the color of the paper from the style sheet again, after the page went dark or light. */
    readPaper() {
      const channels = getComputedStyle(this.#canvas).color.match(/[\d.]+/g).map(Number);
      this.paper = channels.slice(0, 3); // [red, green, blue] up to 255
    }

    /** @param {Float32Array} values (size * size,) from 0, black, to 1, white, row by row, in every theme */
    paint(values) {
      const pixels = new Uint32Array(this.#image.data.buffer);
      for (let i = 0; i < pixels.length; i++) pixels[i] = GRAYS[Math.round(255 * values[i])];
      this.show();
    }

    /**
     * Lays colors on the paper.
     *
     * @param {Float32Array[]} channels red, green, blue, multiplied by the opacity, and the opacity: (size * size,) each
     */
    paintColors([red, green, blue, opacity]) {
      const { pixels, paper } = this;
      opacity.forEach((value, cell) => {
        const through = 1 - Math.min(1, Math.max(0, value));
        [red, green, blue].forEach((color, c) => { pixels[4 * cell + c] = 255 * color[cell] + through * paper[c]; });
        pixels[4 * cell + 3] = 255;
      });
      this.show();
    }

    /** @returns {Uint8ClampedArray} (size * size * 4,) red, green, blue, opacity, for demos that color by themselves */
    get pixels() {
      return this.#image.data;
    }

    /** Shows what was written to `pixels`. */
    show() {
      this.#context.putImageData(this.#image, 0, 0);
    }

    /** Follows a mouse, finger or pen from its press on the canvas to its release, wherever that is. */
    #onGesture({ begin, move, end }) {
      const canvas = this.#canvas;
      let held = false;
      const release = (event) => {
        if (!held || !event.isPrimary) return;
        held = false;
        end();
      };
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || !event.isPrimary) return;
        canvas.setPointerCapture(event.pointerId);
        held = true;
        begin(event);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!event.buttons) release(event); // its end was told elsewhere, say to a menu
        else if (held && event.isPrimary) move(event);
      });
      for (const name of ENDS) canvas.addEventListener(name, release);
    }

    /**
     * Lets readers act on cells: by mouse, finger or pen, tapped or dragged, or with arrow keys and Enter or Space.
     *
     * @param {(row: number, col: number) => void} act once for each cell on the way
     * @param {() => void} [done] when a gesture has ended
     */
    onCells(act, done = () => {}) {
      const canvas = this.#canvas;
      let last = null;
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application"); // so that screen readers pass on the arrow keys
      canvas.classList.add("live-touch");
      const touch = (event) => {
        const { row, col } = this.#cellAt(event);
        const goesOn = last?.size === this.#size; // else the grid has doubled under the finger
        const from = goesOn ? last : { row, col };
        const steps = Math.max(1, Math.abs(row - from.row), Math.abs(col - from.col));
        for (let i = goesOn ? 1 : steps; i <= steps; i++) {
          act(
            Math.round(from.row + ((row - from.row) * i) / steps),
            Math.round(from.col + ((col - from.col) * i) / steps),
          );
        }
        last = { row, col, size: this.#size };
        this.#moveTo(row, col);
      };
      const moved = ({ row, col, size }, event) => {
        const cell = this.#cellAt(event);
        return cell.row !== row || cell.col !== col || size !== this.#size;
      };
      this.#onGesture({
        begin: (event) => {
          canvas.classList.remove("live-keys");
          touch(event);
        },
        move: (event) => {
          if (moved(last, event)) touch(event);
        },
        end: () => {
          last = null;
          done();
        },
      });
      canvas.addEventListener("keydown", (event) => {
        const { row, col } = this.#at;
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (WAYS[event.key]) {
          const inside = (value) => Math.min(this.#size - 1, Math.max(0, value));
          this.#moveTo(inside(row + WAYS[event.key][0]), inside(col + WAYS[event.key][1]));
        } else if (event.key === "Enter" || event.key === " ") {
          act(row, col);
          done();
        } else {
          return;
        }
        canvas.classList.add("live-keys");
        event.preventDefault();
      });
    }

    /**
     * Lets readers move a point: by mouse, finger or pen, or with arrow keys.
     *
     * @param {(x: number, y: number) => void} act on every move: shares of the width from the left and of the height
     *   from the top, in [0, 1]
     * @param {number} step share of the width and height that an arrow key moves it by
     * @param {() => void} done when a gesture has ended
     * @returns {(x: number, y: number) => void} moves the point without a call of `act`
     */
    onPoint(act, step, done) {
      const canvas = this.#canvas;
      const point = make("div", "live-point", canvas.parentElement);
      const at = { x: 0.5, y: 0.5 };
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application"); // so that screen readers pass on the arrow keys
      canvas.classList.add("live-touch");
      const place = (x, y) => {
        const inside = (share) => Math.min(1, Math.max(0, share));
        Object.assign(at, { x: inside(x), y: inside(y) });
        Object.assign(point.style, { left: `${100 * at.x}%`, top: `${100 * at.y}%` });
      };
      const move = (x, y) => {
        place(x, y);
        act(at.x, at.y);
      };
      const follow = (event) => {
        const box = canvas.getBoundingClientRect();
        move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      };
      this.#onGesture({ begin: follow, move: follow, end: done });
      canvas.addEventListener("keydown", (event) => {
        const way = WAYS[event.key];
        if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
        move(at.x + step * way[1], at.y + step * way[0]);
        event.preventDefault();
      });
      canvas.addEventListener("keyup", (event) => {
        if (WAYS[event.key]) done();
      });
      place(at.x, at.y);
      return place;
    }

    describeBy(id) {
      this.#canvas.setAttribute("aria-describedby", id);
    }

    #cellAt(event) {
      const box = this.#canvas.getBoundingClientRect();
      const cell = (share) => Math.min(this.#size - 1, Math.max(0, Math.floor(share * this.#size)));
      return { row: cell((event.clientY - box.top) / box.height), col: cell((event.clientX - box.left) / box.width) };
    }

    #moveTo(row, col) {
      this.#at = { row, col };
      const percent = (value) => `${(100 * value) / this.#size}%`;
      Object.assign(this.#cursor.style, { top: percent(row), left: percent(col), width: percent(1), height: percent(1) });
    }
  }

  /** Takes one piece of work after the other, within the time of a frame, while the stage is in sight. */
  class Player {
    #stage;
    #button;
    #next;
    #draw;
    #work = null;
    #aside = null;
    #asked = null;
    #edits = [];
    #credit = 0;
    #frame = 0;
    #last = 0;
    #inSight = false;
    #moves;
    #again;
    #playing = false;
    #resting = false;
    #steps = 0;
    #readAt = 0;

    constructor(stage, { next, draw, rate, moves, again }) {
      this.#stage = stage;
      this.#next = next;
      this.#draw = draw;
      this.rate = rate; // pieces of work a second that are wanted; may be changed
      this.#moves = moves;
      this.#again = again;
      if (moves) {
        this.#button = stage.button("", () => {
          if (this.#resting) this.edit(this.#again);
          else this.playing = !this.playing;
        });
        this.#button.classList.add("live-play");
      }
      this.playing = !moves || !stage.calm;
      new IntersectionObserver((entries) => {
        this.#inSight = entries.at(-1).isIntersecting; // the latest, where a busy page gets several at once
        this.#wake();
      }).observe(stage.element);
      document.addEventListener("visibilitychange", () => this.#wake());
    }

    get playing() {
      return this.#playing;
    }

    set playing(value) {
      this.#playing = value;
      this.#resting = false;
      this.#tell();
      this.#wake();
    }

    /** Changes the state between two pieces of work, at once or as soon as the present one is done, and draws it. */
    edit(change) {
      if (this.#resting) {
        this.#resting = false;
        this.#tell();
      }
      this.#edits.push(change);
      if (!this.#work) this.#applyEdits();
      this.#wake();
    }

    /**
     * Asks for work beside the pieces of `next`, which is done also while paused. Requests do not queue up: what runs is
     * finished, and of those that came meanwhile the last one is taken.
     *
     * @param {() => Generator} work makes the work once its turn has come; the state that `next` works on is not its own
     */
    ask(work) {
      this.#asked = work;
      this.#wake();
    }

    redraw() {
      if (!this.#work) this.#draw();
    }

    #applyEdits() {
      for (const change of this.#edits.splice(0)) change();
      this.#draw();
    }

    #isActive() {
      // Work that was begun is finished also after a pause: edits wait for it.
      const atWork = this.#work !== null || this.#aside !== null || this.#asked !== null;
      return this.#inSight && !document.hidden && ((this.#playing && !this.#resting) || atWork);
    }

    /** Says on the button what a press does, and below it what goes on; the speed follows once it is measured. */
    #tell() {
      if (!this.#moves) return;
      const moves = this.#playing && !this.#resting;
      this.#button.textContent = moves ? "Pause" : "Play";
      this.#stage.read(moves ? "running" : this.#playing ? "at rest" : "paused");
    }

    #wake() {
      if (this.#frame && this.#isActive()) return;
      this.#tell();
      if (this.#frame || !this.#isActive()) return;
      this.#last = this.#readAt = performance.now();
      this.#steps = 0;
      this.#frame = requestAnimationFrame((now) => this.#run(now));
    }

    #run(now) {
      this.#frame = 0;
      if (!this.#isActive()) return this.#wake();
      try {
        // What could not be done in time is let go.
        const due = (Math.min(100, Math.max(0, now - this.#last)) * this.rate) / 1000;
        this.#credit = Math.min(this.#credit + due, 1 + due);
        this.#last = now;
        this.#spend(performance.now() + BUDGET);
      } catch (error) {
        this.#work = this.#aside = this.#asked = null;
        this.#playing = false;
        vncaLive.fail(this.#stage.element.parentElement, error);
        return;
      }
      this.#readSpeed(now);
      if (this.#isActive()) this.#frame = requestAnimationFrame((then) => this.#run(then));
      else this.#wake();
    }

    #spend(deadline) {
      while (performance.now() < deadline) {
        if (!this.#work && !this.#begin()) {
          if (!this.#stepAside()) return;
          continue;
        }
        if (!this.#work.next().done) continue;
        this.#work = null;
        this.#steps += 1;
        this.#applyEdits();
      }
    }

    /** @returns {boolean} whether there is a piece of work now */
    #begin() {
      if (this.#credit < 1 || !this.#playing || this.#resting) return false;
      this.#work = this.#next();
      this.#resting = !this.#work;
      if (this.#resting) return false;
      this.#credit -= 1;
      return true;
    }

    /** @returns {boolean} whether there was a slice of the work asked for */
    #stepAside() {
      if (!this.#aside) {
        if (!this.#asked) return false;
        [this.#aside, this.#asked] = [this.#asked(), null];
      }
      if (this.#aside.next().done) {
        this.#aside = null;
        this.redraw();
      }
      return true;
    }

    #readSpeed(now) {
      const seconds = (now - this.#readAt) / 1000;
      if (!this.#moves || seconds < READOUT / 1000) return;
      const moves = this.#playing && !this.#resting;
      this.#stage.read(moves ? `${Math.round(this.#steps / seconds)} steps/s` : "computing");
      this.#readAt = now;
      this.#steps = 0;
    }
  }

  let stages = 0, lists = 0;

  /** Where a demo builds itself: screens on one side, controls, speed and hint on the other. */
  class Stage {
    #screens = [];
    #player;
    #row;
    #saidAt = -Infinity;
    #saying = 0;

    constructor(models) {
      this.models = models; // names from `data-model`
      this.calm = matchMedia("(prefers-reduced-motion: reduce)").matches; // nothing may move by itself
      this.element = document.createElement("div");
      this.element.className = "live-stage";
      this.element.setAttribute("role", "group");
      this.screens = make("div", "live-screens", this.element);
      const panel = make("div", "live-panel", this.element);
      this.controls = make("div", "live-controls", panel);
      this.readout = make("p", "live-readout", panel);
      this.note = make("p", "live-hint", panel, { id: `live-hint-${++stages}` });
      this.voice = make("p", "live-voice", panel);
      this.voice.setAttribute("aria-live", "polite");
      new MutationObserver(() => {
        for (const screen of this.#screens) screen.readPaper();
        this.#player?.redraw();
      }).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    }

    /**
     * @param {string} label what it shows, for those who cannot see it
     * @param {number} size side of the grid in cells
     * @returns {Screen}
     */
    screen(label, size) {
      const screen = new Screen(this.#row ?? this.screens, label, size);
      screen.describeBy(this.note.id);
      if (!this.#screens.length) this.element.setAttribute("aria-label", `Live figure: ${label}`);
      this.#screens.push(screen);
      return screen;
    }

    /**
     * Puts the screens that follow side by side.
     *
     * @param {number} columns so many in a row
     * @param {{below?: boolean, title?: string}} [options] `below`: below the controls and not beside them
     */
    row(columns, { below = false, title = "" } = {}) {
      const parent = below ? this.element : this.screens;
      if (title) make("p", "live-title", parent, { textContent: title });
      this.#row = make("div", "live-row", parent);
      this.#row.style.setProperty("--columns", columns);
    }

    /**
     * Buttons of which one is pressed.
     *
     * @param {{label: string, options: string[], value: number, columns: number}} choice `value` is an index of `options`
     * @param {(value: number) => void} act when one is pressed
     * @returns {(value: number) => void} shows another one as pressed, or none if there is no such
     */
    choice({ label, options, value, columns }, act) {
      const group = make("div", "live-choice", this.controls);
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", label);
      make("span", "", group, { textContent: label });
      const grid = make("div", "live-options", group);
      grid.style.setProperty("--columns", columns);
      const press = (pressed) => buttons.forEach((each, i) => each.setAttribute("aria-pressed", i === pressed));
      const buttons = options.map((name, index) => {
        const button = make("button", "", grid, { type: "button", textContent: name });
        button.addEventListener("click", () => {
          press(index);
          act(index);
        });
        return button;
      });
      press(value);
      return press;
    }

    /** @returns {HTMLButtonElement} */
    button(label, act) {
      const button = make("button", "", this.controls, { type: "button", textContent: label });
      button.addEventListener("click", () => act());
      return button;
    }

    /**
     * @param {{label: string, min: number, max: number, step: number, value: number, ticks?: number[]}} options `ticks`
     *   are values that are marked
     * @param {(value: number) => string} text the value as readers see it
     * @param {(value: number) => void} act on every change
     * @returns {HTMLInputElement} with `place(value)`, which moves it without a call of `act`
     */
    slider({ label, min, max, step, value, ticks = [] }, text, act) {
      const row = make("label", "live-slider", this.controls);
      make("span", "", row, { textContent: label });
      const input = make("input", "", row, { type: "range", min, max, step, value });
      input.setAttribute("aria-label", label); // without the value, which is read as such
      const shown = make("span", "live-value", row);
      if (ticks.length) {
        const list = make("datalist", "", row, { id: `live-ticks-${++lists}` });
        for (const tick of ticks) make("option", "", list, { value: tick });
        input.setAttribute("list", list.id);
      }
      // Room for the longest, so that nothing jumps.
      const lengths = Array.from({ length: Math.floor((max - min) / step) + 1 }, (_, i) => text(min + i * step).length);
      shown.style.minWidth = `${Math.max(...lengths)}ch`;
      const show = () => {
        shown.textContent = text(input.valueAsNumber);
        input.setAttribute("aria-valuetext", shown.textContent);
      };
      input.addEventListener("input", () => {
        show();
        act(input.valueAsNumber);
      });
      show();
      const place = (position) => {
        input.value = position;
        show();
      };
      return Object.assign(input, { place });
    }

    /**
     * @param {string} label
     * @param {[value: number, text: string][]} options
     * @param {(value: number) => void} act on every change
     * @returns {HTMLSelectElement}
     */
    select(label, options, act) {
      const row = make("label", "live-select", this.controls);
      make("span", "", row, { textContent: label });
      const select = make("select", "", row);
      for (const [value, text] of options) make("option", "", select, { value, textContent: text });
      select.addEventListener("change", () => act(Number(select.value)));
      return select;
    }

    /** @returns {HTMLParagraphElement} an empty line below the controls, for the demo to write */
    text() {
      const line = document.createElement("p");
      this.readout.before(line);
      return line;
    }

    /** One line on what there is to do. */
    hint(text) {
      this.note.textContent = text;
    }

    /** Tells those who listen what happened last, every three seconds at most. */
    say(text) {
      clearTimeout(this.#saying);
      const wait = this.#saidAt + 3000 - performance.now();
      if (wait > 0) {
        this.#saying = setTimeout(() => this.say(text), wait);
        return;
      }
      this.#saidAt = performance.now();
      this.voice.textContent = text;
    }

    /** The line about the speed; the player writes it. */
    read(text) {
      this.readout.textContent = `Now: ${text}`;
    }

    /**
     * Starts the player, with a button that pauses it; where motion is unwelcome it waits for that button. A figure that
     * never moves by itself has no such button, and writes the line about the speed itself.
     *
     * @param {object} options
     * @param {() => Generator | null} options.next the next piece of work, or null if there is nothing to do
     * @param {() => void} options.draw paints the state; called after every piece of work and every edit
     * @param {number} options.rate pieces of work a second
     * @param {boolean} [options.moves] whether the figure moves by itself
     * @param {() => void} [options.again] what Play does first where `next` had nothing to do
     * @returns {Player} with `edit(change)`, `ask(work)`, `redraw()`, `rate` and `playing`
     */
    play({ next, draw, rate, moves = true, again = () => {} }) {
      this.#player = new Player(this, { next, draw, rate, moves, again });
      draw();
      return this.#player;
    }
  }

  /** Puts a demo in the place of the still picture. */
  vncaLive.mount = async (element, demo, models) => {
    const stage = new Stage(models);
    element.append(stage.element);
    await demo(stage);
    element.dataset.state = "running";
  };
})();
