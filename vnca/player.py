"""A small film player: one HTML fragment without any request, for built pages, Jupyter, Colab and VS Code."""

import hashlib
import html
import json
import math
from collections.abc import Sequence

import numpy as np

from vnca.pictures import data_url

MAX_BYTES = 300_000


class Film:
    """Frames of one size and how to play them; a notebook shows it as a player.

    Args:
        frames: uint8 ``(T, H, W)`` for grey or ``(T, H, W, 3)`` for color.
        labels: T texts, one shown under each frame.
        alt: what the film shows, for readers who cannot see it.
        fps: frames per second.
        scale: screen pixels per frame pixel.
        poster: the frame shown before the film plays and where scripts do not run.

    Raises:
        ValueError: the page fragment would be over 300 kB.
    """

    def __init__(
        self, frames: np.ndarray, labels: Sequence[str], *, alt: str, fps: float, scale: int, poster: int
    ) -> None:
        self.frames, self.labels, self.alt = frames, list(map(str, labels)), alt
        # Numbers of NumPy are no JSON.
        self.fps, self.scale, self.poster = float(fps), int(scale), int(poster) % len(frames)
        self._html = self._build(palette=False)
        if len(self._html) > MAX_BYTES and frames.ndim == 4:
            self._html = self._build(palette=True)
        if len(self._html) > MAX_BYTES:
            count, height, width = frames.shape[:3]
            raise ValueError(
                f"film of {count} frames of {height}x{width} takes {len(self._html) // 1000} kB, "
                f"the limit is {MAX_BYTES // 1000} kB; give fewer frames (frames[::2]) or smaller ones"
            )

    def __repr__(self) -> str:
        count, height, width = self.frames.shape[:3]
        return f"Film({count} frames of {height}x{width}: {self.alt})"

    def _repr_html_(self) -> str:
        return self._html

    def _build(self, *, palette: bool) -> str:
        count, height, width = self.frames.shape[:3]
        columns = math.ceil(math.sqrt(count))
        player = {
            "width": width,
            "height": height,
            "scale": self.scale,
            "columns": columns,
            "labels": self.labels,
            "alt": self.alt,
            "fps": self.fps,
            "poster": self.poster,
            "sprite": data_url(_sheet(self.frames, columns), palette=palette),
        }
        # The name comes from the content: the same film gives the same page, and caches stay valid.
        name = hashlib.sha256(json.dumps(player, sort_keys=True).encode()).hexdigest()[:12]
        return _PAGE.format(
            name=name,
            style=_STYLE,
            poster=data_url(self.frames[self.poster], palette=palette),
            alt=html.escape(self.alt),
            width=width * self.scale,
            height=height * self.scale,
            # "<" could end the script early ("</script>"); JSON has an escape for it.
            script=_SCRIPT % (name, json.dumps(player).replace("<", "\\u003c")),
        )


def _sheet(frames: np.ndarray, columns: int) -> np.ndarray:
    """Lays frames ``(T, H, W, ...)`` out in rows, filled with white: ``(rows * H, columns * W, ...)``."""
    count, height, width = frames.shape[:3]
    rows = math.ceil(count / columns)
    sheet = np.full((rows * columns, *frames.shape[1:]), 255, dtype=np.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, columns, *frames.shape[1:]).swapaxes(1, 2)  # (rows, H, columns, W, ...)
    return sheet.reshape(rows * height, columns * width, *frames.shape[3:])


# data-lm-suppress-shortcuts keeps JupyterLab from taking the arrow keys away from the slider.
_PAGE = """\
<div class="vnca-film" data-film="{name}" data-lm-suppress-shortcuts="true" role="group" aria-label="Film">
<style>{style}</style>
<img src="{poster}" alt="{alt}" width="{width}" height="{height}">
<script>{script}</script>
</div>"""

# Colors are those of the surrounding text, so that light and dark pages both work.
_STYLE = """
.vnca-film { max-width: 100%; margin: 0.5rem 0; }
.vnca-film img, .vnca-film canvas {
  display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
.vnca-film-bar {
  display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.75rem; margin-top: 0.5rem; }
.vnca-film-bar button {
  min-width: 4.5rem; padding: 0.25rem 0.75rem; font: inherit; color: inherit; cursor: pointer;
  background: transparent; border: 1px solid currentColor; border-radius: 0.25rem; }
.vnca-film-bar input {
  flex: 1 1 8rem; min-width: 0; margin: 0; color: inherit; accent-color: currentColor; }
.vnca-film-bar span { flex-basis: 100%; font-variant-numeric: tabular-nums; }
.vnca-film-bar :focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }
"""

# The film is found by its name, not by the running script's place: some notebooks run scripts from elsewhere.
# A film already started is skipped, so the same film can stand on a page twice.
_SCRIPT = """
(() => {
  const name = "%s";
  const film = %s;

  function element(tag, attributes) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  }

  function start(root) {
    const last = film.labels.length - 1;
    const size = { width: film.width, height: film.height };
    const canvas = element("canvas", { ...size, role: "img", "aria-label": film.alt });
    canvas.style.width = film.width * film.scale + "px";
    const bar = element("div", { class: "vnca-film-bar" });
    bar.style.maxWidth = `max(16rem, ${canvas.style.width})`;
    const button = element("button", { type: "button" });
    const slider = element("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "Frame" });
    const label = element("span", {});
    bar.append(button, slider, label);

    const pen = canvas.getContext("2d");
    const sprite = new Image();
    let frame = film.poster;
    let wanted = false;
    let visible = false;
    let running = false;
    let due = 0;

    function show(index) {
      frame = index;
      const x = (index %% film.columns) * film.width;
      const y = Math.floor(index / film.columns) * film.height;
      pen.drawImage(sprite, x, y, film.width, film.height, 0, 0, film.width, film.height);
      slider.value = index;
      slider.setAttribute("aria-valuetext", film.labels[index]);
      label.textContent = film.labels[index];
    }

    // The browser calls this only while its tab is seen; the observer below stops it off screen.
    function turn(now) {
      running = wanted && visible;
      if (!running) return;
      if (now >= due) {
        show(frame === last ? 0 : frame + 1);
        due = now + (frame === last ? Math.max(1000, 1000 / film.fps) : 1000 / film.fps);
      }
      requestAnimationFrame(turn);
    }

    function resume() {
      if (running) return;
      running = true;
      requestAnimationFrame(turn);
    }

    function play(on) {
      wanted = on;
      button.textContent = on ? "Pause" : "Play";
      resume();
    }

    button.addEventListener("click", () => play(!wanted));
    slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
    sprite.addEventListener("load", () => {
      root.querySelector("img").replaceWith(canvas);
      canvas.after(bar);
      show(film.poster);
      play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
      const observer = new IntersectionObserver((entries) => {
        visible = entries[entries.length - 1].isIntersecting;
        resume();
      });
      observer.observe(canvas);
    });
    sprite.src = film.sprite;
  }

  for (const root of document.querySelectorAll(`[data-film="${name}"]:not([data-started])`)) {
    root.setAttribute("data-started", "");
    start(root);
  }
})();
"""
