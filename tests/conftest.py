"""Settings for every test."""

import matplotlib
from hypothesis import settings
from live_pages import browser, folder, npm, opened  # noqa: F401 - fixtures
from test_built_book import address, book  # noqa: F401 - fixtures

# Figures are drawn into files, never into a window. Not by MPLBACKEND, which the kernels of chapters would inherit.
matplotlib.use("Agg")

# The first example of a property test pays for imports and compilation, so a deadline per example says nothing.
settings.register_profile("book", deadline=None)
settings.load_profile("book")
