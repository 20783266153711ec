// Chapter 2: the growing automaton. Readers erase and plant cells, turn the grid, and choose how many cells fire.
vncaLive.addDemo("automaton", async (stage) => {
  "use strict";
  const RADIUS = 2; // of what a tap erases, in cells
  const GROWN = 60; // steps after which the picture is complete
  const OPACITY = 3; // the channel; those before it are red, green and blue

  const engine = await vncaLive.Engine.load(stage.models[0]);
  const size = engine.largest;
  let plants = false; // else a tap erases

  const restart = () => {
    engine.clear(size);
    engine.plant(size >> 1, size >> 1);
  };
  /** A quarter turn clockwise, of every channel. */
  const turn = () => {
    const turned = (values) => values.map((_, cell) => {
      const row = Math.floor(cell / size), col = cell % size;
      return values[(size - 1 - col) * size + row];
    });
    engine.restore({ size, channels: engine.snapshot().channels.map(turned) });
  };
  // In an empty grid nothing happens any more.
  const next = () => (engine.readChannel(OPACITY).some((value) => value !== 0) ? engine.step() : null);
  const draw = () => screen.paintColors([0, 1, 2, OPACITY].map((channel) => engine.readChannel(channel)));

  restart();
  if (stage.calm) for (let step = 0; step < GROWN; step++) await vncaLive.inSlices(engine.step());
  const screen = stage.screen(`A grid of ${size} by ${size} cells, on which a toadstool grows`, size);
  const player = stage.play({ next, draw, rate: 20, again: restart });
  stage.button("Turn the grid", () => {
    player.edit(turn);
    stage.say("The grid is turned by 90 degrees.");
  });
  stage.button("Start over", () => {
    player.edit(restart);
    player.playing = true; // who asks for a plant wants to see it
    stage.say("One cell, and a new toadstool grows.");
  });
  stage.choice({ label: "A tap", options: ["erases", "plants"], value: 0, columns: 2 }, (value) => {
    plants = value === 1;
  });
  stage.slider(
    { label: "Cells that fire", min: 5, max: 100, step: 5, value: 100 * engine.fireRate },
    (percent) => (percent === 100 ? "all" : `${percent}%`),
    (percent) => { engine.fireRate = percent / 100; },
  );
  stage.slider(
    { label: "Speed", min: 1, max: 120, step: 1, value: player.rate },
    (rate) => `${rate} steps/s`,
    (rate) => { player.rate = rate; },
  );
  screen.onCells(
    (row, col) => player.edit(() => {
      if (plants) engine.plant(row, col);
      else engine.damageDisc(row, col, RADIUS);
    }),
    () => stage.say(plants ? "Planted." : "Erased."),
  );
  stage.hint("Tap the grid or drag across it. With the keyboard: arrows move, Enter erases or plants.");
});
