// Chapter 3: a growth that can be stopped anywhere, channel by channel, from any seed between two, and beside it the
// growth of the same seed with one cell changed.
vncaLive.addDemo("growth", async (stage) => {
  "use strict";
  const FIRST = 36; // seeds the first three latents; later ones are nobody's choice
  const VISIBLE = 0.1; // change of a pixel's probability that counts
  const CELLS = ["upper left", "upper right", "lower left", "lower right"];
  const MINUS = [0x2b, 0x7b, 0xba], PLUS = [0xe0, 0x7b, 0x1a]; // hues of negative and positive values

  const engine = await vncaLive.Engine.load(stage.models[0]);
  const { schedule } = engine;
  const last = schedule.length - 1;
  const chosen = { share: 0, cell: null, channel: 0 };
  let random = new vncaLive.Random(FIRST);
  let event = stage.calm ? last : 0;
  const drawThree = () => ["a", "b", "c"].map(() => random.normal(engine.latentSize));
  let latents = drawThree(), inks = null; // of a, b and c, and what they grow into
  let grown = null; // { cell, plain, mixed }, the states after each event

  const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
  const angle = (a, b) => {
    const dot = (u, v) => u.reduce((total, value, i) => total + value * v[i], 0);
    return Math.acos(Math.min(1, Math.max(-1, dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))));
  };
  /** From a to b on an arc. On a straight line between random latents, the middle would be too close to zero. */
  const between = (a, b, share) => {
    const turn = angle(a, b), size = Math.sin(turn);
    if (size < 1e-6) return a;
    const [of, to] = [Math.sin((1 - share) * turn) / size, Math.sin(share * turn) / size];
    return a.map((value, i) => of * value + to * b[i]);
  };

  /** The states after each event of a growth from z, of which one cell of the seed, if any, has another latent. */
  function* record(z, cell, other) {
    const states = [];
    for (const [kind] of schedule) {
      yield* engine.perform(kind, z);
      if (kind === "seed" && cell !== null) engine.writeCell(cell >> 1, cell & 1, other);
      states.push(engine.snapshot());
    }
    return states;
  }

  function* growBoth() {
    const [a, b, c] = latents, { share, cell } = chosen;
    const z = between(a, b, share);
    const plain = yield* record(z, null);
    grown = { cell, plain, mixed: cell === null ? plain : yield* record(z, cell, c) };
  }

  function* growAll() {
    if (!inks) {
      const of = latents, drawn = [];
      for (const z of of) {
        yield* engine.grow(z);
        drawn.push(engine.readChannel(0).map(sigmoid));
      }
      if (of === latents) inks = drawn;
    }
    yield* growBoth();
  }

  /** How many pixels of the finished image the changed cell changes, in words. */
  const decided = () => {
    if (grown.cell === null) return "no cell is changed";
    const [one, other] = [grown.plain, grown.mixed].map((states) => image(states[last]));
    const count = one.filter((value, i) => Math.abs(value - other[i]) > VISIBLE).length;
    const share = Math.round((100 * count) / one.length);
    return `the ${CELLS[grown.cell]} cell is c; at the end ${share}% of the pixels differ`;
  };
  const image = ({ size, channels }) => {
    const border = engine.border;
    const inside = (at) => at >= border && at < size - border;
    return channels[0].map(sigmoid).filter((_, i) => inside(Math.floor(i / size)) && inside(i % size));
  };

  /** Colors from one hue over paper to the other, and the digit itself for channel 0. */
  const paint = (screen, state, most) => {
    screen.resize(state.size);
    const values = state.channels[chosen.channel];
    if (chosen.channel === 0) return screen.paint(values.map(sigmoid));
    const { pixels, paper } = screen;
    values.forEach((value, i) => {
      const hue = value < 0 ? MINUS : PLUS, share = Math.abs(value) / most;
      for (let c = 0; c < 3; c++) pixels[4 * i + c] = Math.round(paper[c] + (hue[c] - paper[c]) * share);
      pixels[4 * i + 3] = 255;
    });
    screen.show();
  };
  const draw = () => {
    inks?.forEach((ink, i) => samples[i].paint(ink));
    const states = [grown.plain[event], grown.mixed[event]];
    const of = ({ channels }) => channels[chosen.channel].reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const most = Math.max(of(states[0]), of(states[1]), 1e-9);
    [whole, changed].forEach((screen, i) => paint(screen, states[i], most));
    whole.caption = "all four cells alike";
    changed.caption = decided();
    key.textContent = chosen.channel === 0
      ? "Channel 0 is the logit of the pixel: the whiter, the more probable that the pixel is 1."
      : `Channel ${chosen.channel}: blue is negative, paper is 0, orange is positive; ` +
        `full color is ±${most.toPrecision(2)}.`;
  };

  const steps = schedule.map(([kind]) => kind);
  const count = (kind, until) => steps.slice(0, until + 1).filter((each) => each === kind).length;
  const moment = (at) => {
    const [kind, size] = schedule[at];
    const cells = `${size} × ${size} cells`;
    if (kind === "seed") return `seed, ${cells}`;
    return `${kind === "step" ? "step" : "doubling"} ${count(kind, at)} of ${count(kind, last)}, ${cells}`;
  };
  function* advance() {
    event = event < last ? event + 1 : 0;
    if (event === last) player.playing = false;
    time.place(event);
  }

  stage.row(3);
  const samples = ["a", "b", "c"].map((name) => {
    const screen = stage.screen(`The digit that latent ${name} grows into`, engine.largest);
    screen.caption = `latent ${name}`;
    return screen;
  });
  stage.row(2);
  const whole = stage.screen("The growth from a seed of four equal cells", schedule[event][1]);
  const changed = stage.screen("The growth from the same seed with one cell changed", schedule[event][1]);
  const key = stage.text();
  await vncaLive.inSlices(growBoth()); // one growth is soon there, the others follow
  const player = stage.play({ next: advance, draw, rate: 4 });
  const grow = () => player.ask(growAll);
  chosen.cell = 0;
  grow();
  stage.button("New digits", () => {
    random = new vncaLive.Random(2 ** 32 * Math.random());
    [latents, inks] = [drawThree(), null];
    grow();
    stage.say("Three other latents.");
  });
  const doublings = steps.flatMap((kind, at) => (kind === "double" ? [at] : []));
  const time = stage.slider(
    { label: "Moment", min: 0, max: last, step: 1, value: event, ticks: doublings },
    moment,
    (at) => {
      player.playing = false;
      event = at;
      player.redraw();
    },
  );
  stage.slider(
    { label: "From a to b", min: 0, max: 100, step: 1, value: 0 },
    (share) => `${share}%`,
    (share) => {
      chosen.share = share / 100;
      grow();
    },
  );
  stage.slider(
    { label: "Channel", min: 0, max: engine.channels - 1, step: 1, value: 0 },
    (channel) => (channel === 0 ? "0: pixel" : `${channel} of ${engine.channels - 1}`),
    (channel) => {
      chosen.channel = channel;
      player.redraw();
    },
  );
  stage.choice(
    { label: "Cell of the seed that is c", options: [...CELLS, "none"], value: chosen.cell, columns: 2 },
    (index) => {
      chosen.cell = index < CELLS.length ? index : null;
      grow();
    },
  );
  stage.hint("Drag Moment through the growth; the marks are doublings. Then change a cell of the seed and compare.");
});
