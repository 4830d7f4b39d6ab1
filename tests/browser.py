"""Pages in a real browser without a window, for tests."""

import html
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


FAULTS = """
const visible = (r) => r.width > 0 && r.height > 0;
const scrolls = (e) => {
    for (; e; e = e.parentElement) {
        if (["auto", "scroll"].includes(view.getComputedStyle(e).overflowX)) return true;
    }
    return false;
};
const view = document.querySelector("iframe").contentWindow, page = view.document;
page.querySelectorAll("details").forEach((d) => { d.open = true; });
const width = view.innerWidth, found = [], texts = [];
if (page.documentElement.scrollWidth > width) found.push("the page is wider than the window");
for (const image of page.images) {
    if (!image.complete || !image.naturalWidth) found.push(`no picture: ${image.alt}`);
}
const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode());) {
    const inside = node.parentElement, range = page.createRange();
    if (!node.data.trim() || inside.closest("script, style, select")) continue;
    range.selectNodeContents(node);
    const limits = inside.ownerSVGElement
        ? inside.ownerSVGElement.getBoundingClientRect() : { left: 0, right: width };
    for (const box of [...range.getClientRects()].filter(visible)) {
        if ((box.right > limits.right + 1 || box.left < limits.left - 1) && !scrolls(inside)) {
            found.push(`runs out of its place: ${node.data.trim()}`);
        }
        texts.push({ box, words: node.data.trim() });
    }
}
texts.sort((a, b) => a.box.top - b.box.top);
texts.forEach(({ box, words }, i) => {
    for (let j = i + 1; j < texts.length && texts[j].box.top < box.bottom - 3; j++) {
        const other = texts[j].box;
        const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        if (across > 2) found.push(`overlap: ${words} | ${texts[j].words}`);
    }
});
return { width, dark: view.matchMedia("(prefers-color-scheme: dark)").matches, found };
"""
"""Faults of a framed page: text over text, text that leaves its place, lost pictures."""


def framed(page, width, height=900, script=""):
    """A page in a frame of any width, as the browser's own window has a least one."""
    inside = html.escape(page, quote=True)
    frame = (
        f'<iframe width="{width}" height="{height}" style="border:0" srcdoc="{inside}"></iframe>'
    )
    return f'<html><body style="margin:0">{frame}<script>{script}</script></body></html>'


def _framed_options(path, width, height, dark):
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    options += ["--hide-scrollbars", f"--window-size={max(width, 500)},{height}", *scheme]
    return [BROWSER, *options, f"--user-data-dir={path.parent / 'profile'}"]


def faults(page, path, width, *, dark=False):
    """Width, dark mode and faults of a page at this width, by scripts in the browser."""
    script = (
        f"const look = () => {{{FAULTS}}}; onload = () => {{ setTimeout(() => {{ document.title = "
        "'at:' + JSON.stringify(look()) + ':at' }, 500) }"
    )
    path.write_text(framed(page, width, script=script), encoding="utf-8")
    command = [*_framed_options(path, width, 900, dark), "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return json.loads(html.unescape(re.search("<title>at:(.*):at</title>", done.stdout)[1]))


def screenshot(page, path, width, *, dark=False, height=2400):
    """A PNG file of the page at this width; its name is returned."""
    path.write_text(framed(page, width, height), encoding="utf-8")
    picture = path.with_suffix(".png")
    command = [*_framed_options(path, width, height, dark), f"--screenshot={picture}"]
    subprocess.run([*command, path.as_uri()], capture_output=True, timeout=180, check=True)
    return picture
