// Chapter 7: the same cells, and two priors to draw their latents from.
vncaLive.addDemo("priors", async (stage) => {
  "use strict";
  const COUNT = 12; // digits of each prior
  const COLUMNS = 6; // in a row

  const engine = await vncaLive.Engine.load(stage.models[0]);
  const prior = await vncaLive.Prior.load(stage.models[1]);
  const random = new vncaLive.Random(2 ** 32 * Math.random());
  let noise, components;
  let spread = 1; // what the noise is multiplied by
  let alike = false; // whether all latents of the learned prior are of one component
  let drawn = 0; // digits since readers wanted others
  let spent; // ms of growing them

  const redraw = () => {
    noise = Array.from({ length: 2 * COUNT }, () => random.normal(engine.latentSize));
    components = noise.map(() => prior.choose(random));
  };
  /** Grows the digit of one screen and counts the time: that between two slices is the page's, or nobody looks. */
  function* grow(index) {
    if (index === 0) spent = 0;
    const slices = growing(index);
    for (let done = false; !done;) {
      const started = performance.now();
      done = slices.next().done;
      spent += performance.now() - started;
      if (!done) yield;
    }
    const seconds = (spent / 1000).toFixed(1);
    stage.read(index + 1 < 2 * COUNT ? "growing" : `${2 * COUNT} digits in ${seconds} s of computing`);
  }
  /** Those of the standard normal come first. */
  function* growing(index) {
    const scaled = noise[index].map((value) => spread * value);
    const learned = index >= COUNT;
    const z = learned ? yield* prior.place(scaled, components[alike ? COUNT : index]) : scaled;
    yield* engine.grow(z);
    inks[index] = engine.readChannel(0).map((logit) => 1 / (1 + Math.exp(-logit)));
  }
  const next = () => (drawn < screens.length ? grow(drawn++) : null);
  const draw = () => screens.forEach((screen, index) => screen.paint(inks[index]));

  redraw();
  const inks = noise.map(() => new Float32Array(engine.largest ** 2));
  const rowsOf = (title, name) => {
    stage.row(COLUMNS, { title });
    return Array.from({ length: COUNT }, (_, i) => stage.screen(`Digit ${i + 1} of ${name}`, engine.largest));
  };
  const screens = [
    ...rowsOf("Latents from the standard normal", "the standard normal"),
    ...rowsOf("Latents from the learned prior", "the learned prior"),
  ];
  await vncaLive.inSlices(grow(drawn++));
  const player = stage.play({ next, draw, rate: 1000, moves: false });
  const arrive = (change) => player.edit(() => {
    change();
    drawn = 0;
    stage.read("growing");
  });
  stage.button("New latents", () => {
    arrive(redraw);
    stage.say("Other digits of each prior.");
  });
  stage.choice(
    { label: "Components of the learned prior", options: ["one for each", "one for all"], value: 0, columns: 2 },
    (value) => arrive(() => { alike = value === 1; }),
  );
  stage.slider(
    { label: "Spread", min: 0, max: 150, step: 10, value: 100, ticks: [100] },
    (percent) => `${percent}%`,
    (percent) => arrive(() => { spread = percent / 100; }),
  );
  stage.hint("Draw several times, and count in each half the digits that you are sure of. Then narrow the spread.");
});
