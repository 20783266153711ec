"""Settings for every test."""

import os

from hypothesis import settings

# Figures are drawn into files, never into a window; set before anything imports matplotlib.
os.environ.setdefault("MPLBACKEND", "Agg")

# The first example of a property test pays for imports and compilation, so a deadline per example says nothing.
settings.register_profile("book", deadline=None)
settings.load_profile("book")
