"""Sphinx extension: the built pages render their math without a network.

MathJax with SVG output is one file and needs no fonts, so it also works from ``file://``, where browsers may
refuse to load fonts. The file comes from the PyPI package ``sphinx-mathjax-offline``.
"""

from importlib import resources
from pathlib import Path

MATHJAX = "tex-svg-full.js"


def setup(app):
    package = Path(resources.files("sphinx-mathjax-offline"))
    app.config.html_static_path.append(str(package / "static" / "mathjax" / MATHJAX))
    app.config.mathjax_path = MATHJAX
    return {"parallel_read_safe": True, "parallel_write_safe": True}
