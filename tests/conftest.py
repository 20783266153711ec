"""Settings for every test."""

import os
import signal

# A program that a script starts in the background ignores SIGINT, and so would the runs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers of pytest-xdist share the cores, and so do the programs and kernels that they start. It has to be said before
# torch is imported: more threads than cores wait for each other most of the time.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))

import matplotlib
from hypothesis import settings
from live_pages import browser, folder, npm, opened  # noqa: F401 - fixtures
from test_built_book import address, book  # noqa: F401 - fixtures

# Figures are drawn into files, never into a window. Not by MPLBACKEND, which the kernels of chapters would inherit.
matplotlib.use("Agg")

# The first example of a property test pays for imports and compilation, so a deadline per example says nothing.
settings.register_profile("book", deadline=None)
settings.load_profile("book")
