// The first page: a digit grows from a latent of a learned prior, and heals where it is touched.
vncaLive.addDemo("grow", async (stage) => {
  "use strict";
  const RADIUS = 3; // of a wound, in cells of the largest grid
  const AWAKE = 200; // steps after the last touch until the cells rest

  const engine = await vncaLive.Engine.load(stage.models[0]);
  const prior = await vncaLive.Prior.load(stage.models[1]);
  const random = new vncaLive.Random(2 ** 32 * Math.random());
  let z, event, awake;

  const draw = () => vncaLive.finish(prior.place(random.normal(engine.latentSize), prior.choose(random)));

  const restart = () => {
    [event, awake] = [1, AWAKE];
    engine.seed(z);
  };
  const next = () => {
    if (event < engine.schedule.length) return engine.perform(engine.schedule[event++][0]);
    return awake-- > 0 ? engine.step() : null;
  };
  const paint = () => {
    screen.resize(engine.size);
    screen.paint(engine.readChannel(0).map((logit) => 1 / (1 + Math.exp(-logit))));
  };

  z = draw();
  restart();
  if (stage.calm) {
    await vncaLive.inSlices(engine.grow(z));
    event = engine.schedule.length;
  }
  const screen = stage.screen("A digit made of cells", engine.size);
  const player = stage.play({ next, draw: paint, rate: 20, again: () => { awake = AWAKE; } });
  const start = (words) => {
    player.edit(restart);
    player.playing = true; // who asks for a digit wants to see it
    stage.say(words);
  };
  stage.button("New digit", () => {
    z = draw();
    start("A new digit grows.");
  });
  stage.button("Start over", () => start("The same digit grows again."));
  stage.slider(
    { label: "Speed", min: 1, max: 120, step: 1, value: player.rate },
    (rate) => `${rate} steps/s`,
    (rate) => { player.rate = rate; },
  );
  screen.onCells(
    (row, col) => player.edit(() => {
      engine.damageDisc(row, col, (RADIUS * engine.size) / engine.largest);
      awake = AWAKE;
    }),
    () => stage.say(player.playing ? "Wounded. New cells close the hole." : "Wounded. Play lets it heal."),
  );
  stage.hint("Tap the digit or drag across it to wound it. With the keyboard: arrows move, Enter wounds.");
});
