"""Pages in a real browser without a window, for tests."""

import json
import re
import shutil
import subprocess

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")


def dom(page, path, *more, width=1200):
    """The page after its scripts ran, and then `more`; `path` is where it is put."""
    path.write_text(page.replace("</body>", "".join(f"<script>{js}</script>" for js in more)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    options += [f"--window-size={width},900", f"--user-data-dir={path.parent / 'profile'}"]
    command = [BROWSER, *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout


def measured(page, path, expression, **options):
    """The value of an expression once everything is loaded, as JSON."""
    script = f"onload = () => {{ document.title = 'at:' + JSON.stringify({expression}) + ':at' }}"
    seen = dom(page, path, script, **options)
    return json.loads(re.search("<title>at:(.*):at</title>", seen)[1])
