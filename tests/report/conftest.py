"""A report, and the page as a browser lays it out, on a desk and on a phone, with JavaScript and without.

The measuring page frames the report once plain and once in a sandbox that forbids its scripts, opens what is folded, and
writes what it finds into its own title. Needs Chromium or Chrome.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path

from made_report import finished, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

MEASURE = """<!doctype html><body><script>
const found = {}, wanted = WANTED;
let open = wanted.length;
const outside = (view, root) => [...root.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest(".scroll, pre, svg, thead")) return false;  // what scrolls inside its own box
  const column = root.body.getBoundingClientRect();
  return box.right > column.right + 1 || box.left < column.left - 1;
}).map(element => element.outerHTML.slice(0, 80));
for (const {name, width, scripts} of wanted) {
  const frame = document.createElement("iframe");
  frame.sandbox = scripts ? "allow-same-origin allow-scripts" : "allow-same-origin";
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const page = frame.contentDocument, view = frame.contentWindow;
    for (const folded of page.querySelectorAll("details")) folded.open = true;
    const root = page.documentElement, next = page.querySelector(".next");
    const shown = () => next && [...next.querySelectorAll("table")].findIndex(table => !table.hidden && table.offsetHeight);
    const before = shown(), first = next && next.querySelector("button");
    if (first) first.click();
    const boxes = [...page.querySelectorAll(".scroll")];
    found[name] = {
      viewport: view.innerWidth, width: root.scrollWidth, height: root.scrollHeight, outside: outside(view, page),
      uncut: boxes.every(box => getComputedStyle(box).overflowX === "auto"),
      tables: next ? next.querySelectorAll("table").length : 0,
      before, after: shown(), disabled: first && first.disabled, sections: page.querySelectorAll("section").length,
    };
    if (!--open) document.title = JSON.stringify(found);
  };
  frame.src = "PAGE";
  document.body.append(frame);
}
</script>"""
WANTED = [
    {"name": f"{width} {'on' if scripts else 'off'}", "width": width, "scripts": scripts}
    for width in (390, 1280)
    for scripts in (True, False)
]


def measured(page, folder):
    driver = folder / "measure.html"
    driver.write_text(MEASURE.replace("WANTED", json.dumps(WANTED)).replace("PAGE", page.as_uri()), encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-web-security",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom",
        driver.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title, done.stderr[-2000:]
    return json.loads(html.unescape(title[1]))


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Path]:
    return finished(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(finished(tmp_path_factory.mktemp("run")))


@pytest.fixture
def laid_out(tmp_path):
    """A function of the page's path, which gives what the browser found for each of four windows."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    return lambda page: measured(page, tmp_path)
