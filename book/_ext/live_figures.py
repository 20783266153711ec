"""Sphinx extension: live figures, small models that run in the pages.

A page asks for one with an element that notebooks show as a sentence::

    <div class="live" data-live="grow" data-model="NAME" data-alt="The still in words.">
    A sentence for readers without the live figure.
    </div>

In the built page the still picture of the figure stands before the sentence, until
``_static/live/live.js`` takes over.
"""

import html
import re
from pathlib import Path

FIGURE = re.compile(
    r'<div class="live" data-live="([\w-]+)"[^>]*?data-alt="([^"]*)"[^>]*>'
)
STILLS = Path(__file__).resolve().parent.parent / "_static" / "live" / "stills"


def add_stills(app, pagename, templatename, context, doctree):
    """Put each live figure's still picture before its sentence."""

    def with_still(match):
        demo, alt = match.groups()
        still = STILLS / f"{demo}.png"
        if not still.is_file():
            raise ValueError(f"{pagename} has the live figure {demo!r}, but no {still}")
        path = context["pathto"](f"_static/live/stills/{demo}.png", resource=True)
        image = f'<img class="live-still" src="{html.escape(path)}" alt="{alt}">'
        return match[0] + image

    if "body" in context:
        context["body"] = FIGURE.sub(with_still, context["body"])


def setup(app):
    app.add_css_file("live/live.css")
    app.add_js_file("live/live.js", defer="defer")
    app.connect("html-page-context", add_stills)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
