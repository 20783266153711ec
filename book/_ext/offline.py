"""Sphinx extension: the built pages are whole without a network, served or as files.

MathJax with SVG output is one file and needs no fonts, which browsers may refuse to
load from ``file://``. It comes from the PyPI package ``sphinx-mathjax-offline``.
"""

import re
from importlib import resources
from pathlib import Path

from docutils import nodes

MATHJAX = "tex-svg-full.js"
FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\n?')


def name_badges(app, doctree):
    """Put alt text for pictures on other servers, such as Colab's badge."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].startswith(("http://", "https://")):
            image.replace_self(nodes.Text(image["alt"]))


def drop_font_preloads(app, exception):
    """Drop the theme's early requests for icon fonts; from ``file://`` they are errors.

    The theme then draws these icons as SVG.
    """
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if FONT_PRELOAD.search(text):
            page.write_text(FONT_PRELOAD.sub("", text), encoding="utf-8")


def setup(app):
    package = Path(resources.files("sphinx-mathjax-offline"))
    app.config.html_static_path.append(str(package / "static" / "mathjax" / MATHJAX))
    app.config.mathjax_path = MATHJAX
    # Before Sphinx collects the pictures of the page, at its default priority of 500.
    app.connect("doctree-read", name_badges, priority=100)
    app.connect("build-finished", drop_font_preloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
