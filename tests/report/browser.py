"""Open a page in headless Chromium with a script of the test's own, and read what that script found.

The script runs in a copy of the page, so that the page itself carries nothing for tests. Errors, refused requests and
the page's own console errors are collected before anything else of the page runs.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WATCH = """<script>
window.found = {errors: [], refused: []};
addEventListener("error", event => found.errors.push(String(event.message)), true);
addEventListener("unhandledrejection", event => found.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => found.refused.push(event.blockedURI));
console.error = (...all) => found.errors.push(all.join(" "));
</script>"""
REPORT = """<script>addEventListener("load", () => {
  try { %s } catch (error) { found.errors.push("test script: " + error); }
  found.requests = performance.getEntriesByType("resource").map(each => each.name);
  const out = document.createElement("template-found");
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});</script>"""


def browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def open_page(page: Path, script: str, folder: Path) -> dict:
    """What the test's `script` put into `found`, besides `errors`, `refused` (by the page's policy) and `requests`."""
    text = page.read_text(encoding="utf-8")
    assert text.count("<head>") == 1
    assert text.endswith("</body></html>\n")
    copy = folder / "watched.html"
    watched = text.replace("<head>", "<head>" + WATCH).replace("</body></html>\n", REPORT % script + "</body></html>\n")
    copy.write_text(watched, encoding="utf-8")
    name = browser()
    assert name is not None
    ran = subprocess.run(
        [
            name,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
    )
    match = re.search(r"<template-found>(.*?)</template-found>", ran.stdout, flags=re.S)
    assert match, f"the page did not finish loading: {ran.stderr[-2000:]}"
    return json.loads(html.unescape(match.group(1)))
