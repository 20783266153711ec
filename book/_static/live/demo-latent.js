// Chapter 1: a walk through latent space, along two of the latent's numbers at a time.
vncaLive.addDemo("latent", async (stage) => {
  "use strict";
  const REACH = 3; // from the middle of the pad to its sides, in standard deviations of the prior
  const STEP = 0.1; // of an arrow key, in the same unit
  const TILES = 5; // pictures along each side of the pad
  const FAINT = 0.4; // of their ink

  const decoder = await vncaLive.Decoder.load(stage.models[0]);
  const random = new vncaLive.Random(2 ** 32 * Math.random());
  const side = decoder.imageSize, width = TILES * side;
  const map = new Float32Array(width ** 2); // ink of the pad: what other points would show, and the axes
  let [[across], [up]] = decoder.latents; // which numbers the pad moves
  let z = random.normal(decoder.latentSize);
  let image;
  await vncaLive.inSlices(lookHere());
  let stale = false; // whether the image is that of an earlier point
  let drawn = 0; // tiles of the pad since readers chose other numbers or another digit

  function inkOf(logits) {
    return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  }

  function* lookHere() {
    const started = performance.now();
    image = inkOf(yield* decoder.decode(z));
    stage.read(`an image in ${(performance.now() - started).toFixed(1)} ms`);
  }

  function* lookAt(tile) {
    const row = Math.floor(tile / TILES), col = tile % TILES;
    const there = z.slice();
    there[across] = ((2 * col + 1) / TILES - 1) * REACH;
    there[up] = (1 - (2 * row + 1) / TILES) * REACH;
    const ink = inkOf(yield* decoder.decode(there));
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) map[(row * side + y) * width + col * side + x] = FAINT * ink[y * side + x];
    }
    drawAxes();
  }

  /** Two lines through the origin, with a tick at each standard deviation. */
  function drawAxes() {
    const line = (along, beside) => {
      map[along * width + beside] = map[beside * width + along] = FAINT;
    };
    for (let along = 0; along < width; along++) {
      const unit = ((along + 0.5) / width - 0.5) * 2 * REACH;
      const isTick = Math.abs(unit - Math.round(unit)) < REACH / width;
      for (let beside = width / 2 - (isTick ? 3 : 0); beside <= width / 2 + (isTick ? 3 : 0); beside++) {
        line(along, beside);
      }
    }
  }

  const next = () => {
    if (stale) {
      stale = false;
      return lookHere();
    }
    return drawn < TILES ** 2 ? lookAt(drawn++) : null;
  };
  const named = (value) => value.toFixed(1).replace("-", "−");
  const draw = () => {
    pad.paint(map);
    screen.paint(image);
    pad.caption = `→ number ${across} is ${named(z[across])}, ↑ number ${up} is ${named(z[up])}`;
  };

  stage.row(2);
  const pad = stage.screen("A pad: a point between pictures of what the decoder draws elsewhere", width);
  const screen = stage.screen("What the decoder draws at the point", side);
  screen.caption = "the image at the point";
  drawAxes();
  const player = stage.play({ next, draw, rate: 1000, moves: false });
  const place = pad.onPoint(
    (x, y) => player.edit(() => {
      z[across] = (2 * x - 1) * REACH;
      z[up] = (1 - 2 * y) * REACH;
      stale = true;
    }),
    STEP / (2 * REACH),
    () => stage.say(`Number ${across} is ${named(z[across])}, number ${up} is ${named(z[up])}.`),
  );
  const arrive = (change) => player.edit(() => {
    change();
    [stale, drawn] = [true, 0];
    place((z[across] / REACH + 1) / 2, (1 - z[up] / REACH) / 2);
  });
  place((z[across] / REACH + 1) / 2, (1 - z[up] / REACH) / 2);

  const options = decoder.latents.map(([index, pixels]) => [index, `number ${index}: ${pixels} pixels`]);
  // The pad needs two different numbers: who chooses that of the other side swaps them.
  const choices = ["Across", "Up"].map((label, which) => stage.select(label, options, (chosen) => arrive(() => {
    if (which === 0) [across, up] = [chosen, chosen === up ? across : up];
    else [across, up] = [chosen === across ? up : across, chosen];
    choices[0].value = across;
    choices[1].value = up;
  })));
  choices[1].value = up;
  stage.button("To the origin", () => {
    arrive(() => { z = new Float32Array(decoder.latentSize); });
    stage.say("All numbers are zero.");
  });
  stage.button("Another digit", () => {
    arrive(() => { z = random.normal(decoder.latentSize); });
    stage.say("All numbers are drawn anew.");
  });
  stage.hint(
    "Drag the point across the pad, or move it with the arrow keys. The pixels after a number: how many it changes, " +
      "on average, from −1 to 1.",
  );
});
