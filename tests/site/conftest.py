"""One browser and a small server for the tests of the built site; skipped where either is missing."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address():
    """Where the site is served on this machine."""
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built: make book")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser(address):
    """A headless Chromium: the system's if there is one, else playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make browser")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, CHROMIUM)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install chromium")
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser):
    """A browser window of its own for a test, 1280 pixels wide, in which nothing may move by itself."""
    window = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield window
    window.close()
