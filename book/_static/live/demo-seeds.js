// Chapter 2: seeds that carry a number, in two grids. One automaton learned two numbers, the other one many between.
vncaLive.addDemo("seeds", async (stage) => {
  "use strict";
  const RADIUS = 2; // of what a tap erases, in cells
  const GROWN = 60; // steps after which the pictures are complete
  const OPACITY = 3; // the channel; those before it are red, green and blue
  const LEARNED = ["It learned z = 1 and z = −1.", "It learned many z from 1 to −1."]; // as the models come

  const engines = await Promise.all(stage.models.map((name) => vncaLive.Engine.load(name)));
  const size = engines[0].largest;
  let z = 0; // of the next seed
  let plants = false; // else a tap erases

  const restart = () => {
    for (const engine of engines) {
      engine.clear(size);
      engine.plant(size >> 1, size >> 1, z);
    }
  };
  function* step() {
    for (const engine of engines) yield* engine.step();
  }
  // In empty grids nothing happens any more.
  const next = () => (engines.some((one) => one.readChannel(OPACITY).some((value) => value !== 0)) ? step() : null);
  const draw = () => screens.forEach((screen, i) => {
    screen.paintColors([0, 1, 2, OPACITY].map((channel) => engines[i].readChannel(channel)));
  });

  restart();
  if (stage.calm) for (let count = 0; count < GROWN; count++) await vncaLive.inSlices(step());
  stage.row(2);
  const screens = LEARNED.map((caption) => {
    const screen = stage.screen(`A grid of ${size} by ${size} cells. ${caption}`, size);
    screen.caption = caption;
    return screen;
  });
  const player = stage.play({ next, draw, rate: 20, again: restart });
  const growAnew = () => {
    player.edit(restart);
    player.playing = true; // who asks for plants wants to see them
  };
  stage.button("Start over", () => {
    growAnew();
    stage.say("A new seed in each grid.");
  });
  stage.slider(
    { label: "z of the next seed", min: -100, max: 100, step: 5, value: 100 * z, ticks: [-100, 100] },
    (percent) => (percent / 100).toFixed(2).replace("-", "−"),
    (percent) => {
      z = percent / 100;
      growAnew();
    },
  );
  stage.choice({ label: "A tap", options: ["erases", "plants"], value: 0, columns: 2 }, (value) => {
    plants = value === 1;
  });
  stage.slider(
    { label: "Speed", min: 1, max: 120, step: 1, value: player.rate },
    (rate) => `${rate} steps/s`,
    (rate) => { player.rate = rate; },
  );
  screens.forEach((screen, i) => screen.onCells(
    (row, col) => player.edit(() => {
      if (plants) engines[i].plant(row, col, z);
      else engines[i].damageDisc(row, col, RADIUS);
    }),
    () => stage.say(plants ? "Planted." : "Erased."),
  ));
  stage.hint("Drag z: seeds with that number begin anew. Then erase with taps, or plant seeds side by side. " +
    "With the keyboard: arrows move, Enter erases or plants.");
});
