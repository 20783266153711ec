// Chapter 6: a digit drawn by hand loses some pixels; the model completes it, and cells grow a completion and heal it.
vncaLive.addDemo("inpaint", async (stage) => {
  "use strict";
  const CHAINS = 4; // completions
  const KNOWN = 12, ENOUGH = 48; // images of the prior, at first and in the end
  const TRUSTING = 2; // turns of pseudo-Gibbs that make a first completion
  const LONGER = 20; // turns of Metropolis-within-Gibbs that a press of the button adds
  const HEALING = 40; // steps after the damage
  const HOLE = [0xe6, 0x9e, 0x00]; // neither black nor white; that of the notebook's panel
  const EXAMPLES = {
    2: [[[8, 9], [6, 12], [6, 16], [8, 18], [11, 18], [15, 13], [20, 8], [20, 13], [21, 20]]],
    3: [[[6, 9], [5, 14], [7, 18], [10, 17], [12, 13], [14, 18], [18, 19], [21, 15], [21, 9]]],
    4: [[[5, 10], [13, 8], [13, 19]], [[5, 18], [13, 17], [22, 16]]],
    5: [[[6, 19], [6, 11], [12, 10], [12, 15], [15, 18], [19, 17], [22, 13], [21, 8]]],
    8: [[[8, 17], [5, 14], [7, 10], [11, 13], [16, 17], [21, 15], [21, 11], [17, 10], [12, 14], [8, 17]]],
  };

  await Promise.all(["drawing.js", "inpainter.js"].map((script) => vncaLive.load(script)));
  const { Engine, Encoder, Inpainter, Drawing, Random } = vncaLive;
  const engine = await Engine.load(stage.models[0]);
  const encoder = await Encoder.load(stage.models[1]);
  const random = new Random(2 ** 32 * Math.random());
  const inpainter = new Inpainter(engine, encoder, random);
  const side = engine.imageSize, { border, schedule } = engine;
  const damagedAt = schedule.length, last = damagedAt + HEALING;

  const names = Object.keys(EXAMPLES);
  const set = { row: 8, col: 8, size: 12, temperature: 1, completion: 0 }; // as the notebook's panel begins
  let drawing = new Drawing(EXAMPLES[names[1]]);
  let moment = stage.calm ? last : 0;
  const stale = { task: true, film: false };
  let more = 0; // turns that a reader asked for and the chains do not know of yet
  let task; // { x, observed, hole, noise, chains, turns, wanted, accepted }
  let film = null; // what is shown: { task, completion, frames, painted, spread }
  let old = false; // whether the film is of an earlier drawing or hole

  const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

  /** Does the next piece of what is out of date, and asks for the rest. */
  function* catchUp() {
    if (stale.task) {
      stale.task = false;
      task = yield* newTask();
      stale.film = true;
    } else if (more) {
      task.wanted += more;
      more = 0;
    } else if (task.turns < task.wanted) {
      yield* turn(task);
      stale.film = true;
    } else if (!stale.film && inpainter.known < ENOUGH) {
      yield* inpainter.learn(1);
    }
    if (stale.film) {
      stale.film = false;
      film = yield* grown(task);
      old = stale.task;
    }
    if (stale.task || stale.film || more || task.turns < task.wanted || inpainter.known < ENOUGH) player.ask(catchUp);
  }

  /** The drawing as the model sees it, with its hole. */
  const given = () => {
    const x = drawing.fitted(), hole = { ...set };
    const observed = Uint8Array.from(x, (_, i) => {
      const down = Math.floor(i / side) - hole.row, right = (i % side) - hole.col;
      return Number(Math.min(down, right) < 0 || Math.max(down, right) >= hole.size);
    });
    return { x, hole, observed };
  };

  /** What is given, and a first completion by each chain. */
  function* newTask() {
    const { x, hole, observed } = given();
    if (inpainter.known < KNOWN) yield* inpainter.learn(KNOWN);
    let chains = yield* inpainter.begin(x, observed, CHAINS);
    for (let turn = 1; turn < TRUSTING; turn++) chains = yield* inpainter.turns(x, observed, chains, true);
    const noise = chains.map(() => random.normal(engine.latentSize));
    return { x, observed, hole, noise, chains, turns: 0, wanted: 0, accepted: 0 };
  }

  function* turn(of) {
    of.chains = yield* inpainter.turns(of.x, of.observed, of.chains, false);
    of.turns += 1;
    of.accepted += of.chains.filter((chain) => chain.accepted).length;
  }

  /** Every completion grown from its latent, and of one of them each step, the damage and the healing. */
  function* grown(of) {
    const { temperature, completion } = set, { hole, noise, chains } = of;
    const latents = chains.map(({ q }, k) => inpainter.latent(q, noise[k], temperature));
    const each = [], frames = [];
    for (const z of latents) each.push((yield* inpainter.decode(z)).map(sigmoid));
    const keep = () => frames.push({ size: engine.size, ink: engine.readChannel(0).map(sigmoid) });
    for (const [event] of schedule) {
      yield* engine.perform(event, latents[completion]);
      keep();
    }
    engine.damage(hole.row + border, hole.col + border, hole.size, hole.size);
    keep();
    for (let step = 0; step < HEALING; step++) {
      yield* engine.step();
      keep();
    }
    yield;
    const painted = [];
    for (const { logits } of chains) {
      painted.push(inpainter.probabilities(of.x, of.observed, logits));
      yield;
    }
    return { task: of, completion, frames, painted, spread: spread(each, of.observed) };
  }

  /** Standard deviation of each missing pixel's probability over the completions. */
  const spread = (each, observed) => each[0].map((_, i) => {
    if (observed[i]) return 0;
    const mean = each.reduce((total, p) => total + p[i], 0) / CHAINS;
    return Math.sqrt(each.reduce((total, p) => total + (p[i] - mean) ** 2, 0) / CHAINS);
  });
  const meanMissing = (values, observed) => {
    const missing = [...values].filter((_, i) => !observed[i]);
    return (missing.reduce((total, value) => total + value, 0) / Math.max(1, missing.length)).toFixed(2);
  };

  let now = given();
  const draw = () => {
    pad.paint(drawing.image());
    screens.original.paint(now.x);
    paintDamaged(screens.damaged, now);
    screens.damaged.caption = `Damaged: ${now.observed.filter((seen) => !seen).length} pixels missing`;
    results.forEach((screen) => { screen.old = old; });
    if (film) drawFilm();
  };
  const drawFilm = () => {
    const { x, observed } = film.task, frame = film.frames[moment];
    const at = (pixel) => Math.floor(((pixel + border) * frame.size) / engine.largest); // the cell that it belongs to
    const cell = (i) => at(Math.floor(i / side)) * frame.size + at(i % side);
    const regrown = x.map((value, i) => (observed[i] ? value : frame.ink[cell(i)]));
    const difference = regrown.map((value, i) => Math.abs(value - x[i]));
    screens.regrown.paint(regrown);
    screens.difference.paint(difference);
    screens.uncertainty.paint(film.spread.map((value) => 2 * value)); // at most 0.5
    screens.cells.resize(frame.size);
    screens.cells.paint(frame.ink);
    completions.forEach((screen, k) => screen.paint(film.painted[k]));
    describe(difference);
  };
  const describe = (difference) => {
    const { observed, turns, wanted, accepted } = film.task;
    screens.difference.caption = `Difference, mean ${meanMissing(difference, observed)}`;
    screens.uncertainty.caption = `Uncertainty, mean ${meanMissing(film.spread, observed)}`;
    completions.forEach((screen, k) => {
      screen.caption = `Completion ${k + 1}${k === film.completion ? ", in the cells" : ""}`;
    });
    const share = Math.round((100 * accepted) / (CHAINS * Math.max(1, turns)));
    status.textContent = wanted === 0
      ? "Completions: a quick estimate, by pseudo-Gibbs."
      : `Completions: ${turns} of ${wanted} turns of Metropolis-within-Gibbs, ${share}% of the proposals accepted.`;
  };
  const paintDamaged = (screen, { x, observed }) => {
    screen.paint(x);
    const { pixels } = screen;
    observed.forEach((seen, i) => { if (!seen) pixels.set(HOLE, 4 * i); });
    screen.show();
  };

  const text = (at) => {
    if (at < damagedAt) return `growing, step ${at} of ${damagedAt - 1}`;
    return at === damagedAt ? "damaged" : `healing, step ${at - damagedAt} of ${HEALING}`;
  };
  function* advance() {
    if (!film) return;
    moment = moment < last ? moment + 1 : 0;
    if (moment === last) player.playing = false;
    steps.place(moment);
  }

  const pad = stage.screen("A pad of 28 by 28 pixels to draw a digit on", side);
  pad.caption = "Draw here";
  const labels = {
    original: ["The drawing, fitted to the middle: what the model sees", "Original: what the model sees"],
    damaged: ["The digit with its hole", "Damaged"],
    regrown: ["The digit with its hole filled by the cells", "Regrown by the cells"],
    difference: ["How far original and regrown differ", "Difference"],
    uncertainty: ["How much the completions differ", "Uncertainty"],
    cells: ["The cells that grow one completion, lose the hole and heal", "The cells"],
  };
  const screens = Object.fromEntries(Object.entries(labels).map(([key, [label, caption]], i) => {
    if (i % 3 === 0) stage.row(3);
    const screen = stage.screen(label, key === "cells" ? engine.largest : side);
    screen.caption = caption;
    return [key, screen];
  }));
  stage.row(4, { below: true });
  const completions = Array.from({ length: CHAINS }, (_, k) => (
    stage.screen(`Completion ${k + 1}: the observed pixels, and the probabilities of the missing ones`, side)
  ));
  completions.forEach((screen, k) => { screen.caption = `Completion ${k + 1}`; });
  const results = [screens.regrown, screens.difference, screens.uncertainty, screens.cells, ...completions];
  const status = stage.text();
  stage.text().textContent = "White is 1 in Difference and 0.5 in Uncertainty; their means are over the hole.";

  const player = stage.play({ next: advance, draw, rate: 10 });

  let due = 0;
  const renew = () => {
    stale.task = old = true;
    player.ask(catchUp);
    due ||= requestAnimationFrame(() => { // once for all the cells that a quick pen crosses
      due = 0;
      now = given();
      player.redraw();
    });
  };
  const grow = () => {
    stale.film = true;
    player.ask(catchUp);
  };
  stage.button("Clear", () => {
    drawing = new Drawing();
    press(-1);
    renew();
    stage.say("The pad is empty.");
  });
  stage.button("Sample longer", () => {
    more += LONGER;
    player.ask(catchUp);
    stage.say(`${LONGER} turns of Metropolis-within-Gibbs.`);
  });
  const press = stage.choice({ label: "Draw, or take", options: names, value: 1, columns: names.length }, (index) => {
    drawing = new Drawing(EXAMPLES[names[index]]);
    renew();
  });
  const slider = (label, max, key, words) => (
    stage.slider({ label, min: 0, max, step: 1, value: set[key] }, words, (value) => {
      set[key] = value;
      renew();
    })
  );
  const row = slider("Row", side - 1, "row", String);
  const col = slider("Column", side - 1, "col", String);
  const size = slider("Size", side, "size", (pixels) => (pixels ? `${pixels} × ${pixels}` : "no hole"));
  stage.slider(
    { label: "Completion", min: 1, max: CHAINS, step: 1, value: 1 },
    (k) => `${k} of ${CHAINS}`,
    (k) => {
      set.completion = k - 1;
      grow();
    },
  );
  stage.slider(
    { label: "Temperature", min: 0, max: 2, step: 0.1, value: set.temperature },
    (temperature) => temperature.toFixed(1),
    (temperature) => {
      set.temperature = temperature;
      grow();
    },
  );
  const steps = stage.slider(
    { label: "Steps", min: 0, max: last, step: 1, value: moment, ticks: [damagedAt] },
    text,
    (at) => {
      player.playing = false;
      moment = at;
      player.redraw();
    },
  );
  pad.onCells(
    (y, x) => {
      drawing.to(y, x);
      press(-1);
      renew();
    },
    () => {
      drawing.lift();
      stage.say("The drawing was fitted to the middle, and is being completed.");
    },
  );
  screens.damaged.onCells((y, x) => {
    if (set.size === 0) size.place(set.size = 8);
    const corner = (at) => Math.min(side - 1, Math.max(0, at - (set.size >> 1)));
    row.place(set.row = corner(y));
    col.place(set.col = corner(x));
    renew();
  }, () => stage.say(`The hole is at row ${set.row}, column ${set.col}, and the digit is being completed.`));
  stage.hint(
    "Draw a digit, drag the hole in Damaged, press Play. Four chains complete the digit; " +
      "the cells grow one completion from its latent, lose the hole and heal. " +
      "With the keyboard: arrows move, Enter draws a dot or moves the hole.",
  );
  player.ask(catchUp);
});
