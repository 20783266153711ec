"""Finds and starts the browser that tests and benchmarks of the pages drive."""

import os
import shutil
from pathlib import Path


def find_browser(playwright) -> str | None:
    """The program to drive: one in PATH, Chrome where macOS keeps it, or the one Playwright downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    candidates = [*map(shutil.which, names), mac, playwright.chromium.executable_path]
    return next((path for path in candidates if path and Path(path).exists()), None)


def launch(playwright, program: str):
    """The running browser, without a graphics card and without asking for news."""
    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # Chromium's own sandbox does not start for root, as in a container.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=program, args=[*quiet, *sandbox])
