"""The built documentation in Chromium: search finds a page."""

import html
import json
import os
import re
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser import BROWSER, browser

REPOSITORY = Path(__file__).parents[2]

FOUND = threading.Event()

OUTER = """<html><body><iframe src="/index.html?q=starved" width="1400" height="900"></iframe>
<script>
setInterval(() => {
    const page = document.querySelector("iframe").contentDocument;
    const links = [...page.querySelectorAll(".md-search-result__link")].map((a) => a.pathname);
    if (links.length) { document.title = "at:" + JSON.stringify(links) + ":at"; fetch("/found"); }
}, 200);
</script><img src="/wait"></body></html>"""
"""Asks the search of the page in the frame; the picture keeps the browser until it has answered."""


class Site(SimpleHTTPRequestHandler):
    """Files of the site, and the two addresses of the page above."""

    def do_GET(self):
        if self.path == "/outer":
            self._answer(OUTER.encode())
        elif self.path == "/found":
            FOUND.set()
            self._answer(b"")
        elif self.path == "/wait":
            FOUND.wait(90)
            time.sleep(0.5)
            self._answer(b"")
        else:
            super().do_GET()

    def _answer(self, content):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built site; `SITE=folder` takes one that is built."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return out


@browser
@pytest.mark.slow
def test_the_search_finds_pages_on_starved_rows(site, tmp_path):
    FOUND.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", f"http://127.0.0.1:{server.server_port}/outer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    server.shutdown()
    server.server_close()
    told = re.search("<title>at:(.*):at</title>", done.stdout)
    assert told, "the search gave no result"
    assert "/watching.html" in json.loads(html.unescape(told[1]))
