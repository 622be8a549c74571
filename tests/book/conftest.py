"""The built site and a browser for it. `make site-check` fails where either is missing."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
from weigh import browser_path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "_build" / "html"


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built pages."""
    if not (SITE / "book" / "index.html").exists():
        pytest.fail(f"There is no built site in {SITE}. Run 'make book' first.", pytrace=False)
    return SITE


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        pytest.fail(
            "No Chromium was found. On Debian or Ubuntu: apt-get install chromium; "
            "on macOS: install Google Chrome; or set CHROMIUM=/path/to/chromium.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):  # the tests' output is long enough
        pass


@pytest.fixture(scope="session")
def address(site: Path):
    """The site behind a local server, as a reader of the published book gets it."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
