"""Weigh the built pages as a phone on a slow line gets them: `make weigh`.

    python book/_tools/weigh.py [--site DIR] [--desk] [PAGE …]

For each page, in a fresh browser without a cache: seconds until the first text is painted, seconds
until the last formula is drawn, kB that came over the line (compressed, as a web server sends
them), and the layout shift (CLS: how far the text jumps while the page builds itself up; 0.1 is
still good). A phone means 390 px, 1.6 Mbit/s, 150 ms each way and a processor slowed to a quarter;
--desk means 1280 px and neither brake. PAGE is a part of a path, such as 02_svd or glossary;
without one all pages are weighed.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "_build" / "html"
COMPRESSED = {".html", ".js", ".css", ".svg", ".json", ".txt", ".xml"}
WAIT_MS = 120_000
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}

# Collects in the page what happens before anything of ours could run there.
WATCH = """
window.weighed = {shifts: [], paint: null, drawn: null};
new PerformanceObserver(list => { for (const entry of list.getEntries())
  if (!entry.hadRecentInput) weighed.shifts.push({at: entry.startTime, size: entry.value,
    where: entry.sources.map(s => [s.previousRect, s.currentRect].map(r => [r.x, r.y, r.width,
      r.height].map(Math.round).join(' ')).join(' -> ') + ' ' + (s.node
      ? (s.node.outerHTML || s.node.textContent).slice(0, 60) : ''))}); })
  .observe({type: 'layout-shift', buffered: true});
new PerformanceObserver(list => { for (const entry of list.getEntries())
  if (entry.name === 'first-contentful-paint') weighed.paint = entry.startTime; })
  .observe({type: 'paint', buffered: true});
addEventListener('load', () => { if (window.MathJax && MathJax.startup)
  MathJax.startup.promise.then(() => { weighed.drawn = performance.now(); }); });
"""
READY = """() => weighed.paint !== null && document.readyState === 'complete'
  && (!window.MathJax || !MathJax.startup || weighed.drawn !== null)
  && document.fonts.status === 'loaded'"""


class Weight(NamedTuple):
    """What a page cost: seconds, seconds (None without formulas), kB, layout shift."""

    paint: float
    drawn: float | None
    kilobytes: float
    shift: float
    shifts: list[dict[str, Any]]


class _Gzip(http.server.SimpleHTTPRequestHandler):
    """A file server that compresses text, as those do that publish such sites."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        if path.suffix in COMPRESSED:
            body = gzip.compress(body, 6, mtime=0)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """The site behind a server that compresses; gives its address."""
    handler = functools.partial(_Gzip, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def total_shift(shifts: list[dict[str, Any]]) -> float:
    """The layout shift of a page: the worst burst (gaps under 1 s, at most 5 s long)."""
    worst = burst = 0.0
    first = last = -1e9
    for shift in shifts:
        if shift["at"] - last > 1000 or shift["at"] - first > 5000:
            burst, first = 0.0, shift["at"]
        burst, last = burst + shift["size"], shift["at"]
        worst = max(worst, burst)
    return worst


def weigh(browser: Any, url: str, size: dict[str, int] = PHONE, slow: bool = True) -> Weight:
    """Open one page in a context of its own, without a cache, and weigh it.

    Args:
        browser: Playwright's Chromium.
        url: the page's address.
        size: of the window, in px.
        slow: whether line and processor are a phone's.
    """
    context = browser.new_context(viewport=size)
    try:
        context.add_init_script(WATCH)
        page = context.new_page()
        line = context.new_cdp_session(page)
        received: list[float] = []
        line.send("Network.enable")
        line.on("Network.loadingFinished", lambda end: received.append(end["encodedDataLength"]))
        if slow:
            speed = 1.6e6 / 8
            line.send("Network.emulateNetworkConditions", {"offline": False, "latency": 150,
                      "downloadThroughput": speed, "uploadThroughput": speed})  # fmt: skip
            line.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.goto(url, wait_until="load", timeout=WAIT_MS)
        page.wait_for_function(READY, timeout=WAIT_MS)
        # The last shift is reported with the frame after it.
        page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r, 300)))")
        seen = page.evaluate("weighed")
    finally:
        context.close()
    drawn = seen["drawn"] / 1000 if seen["drawn"] is not None else None
    return Weight(seen["paint"] / 1000, drawn, sum(received) / 1000,
                  total_shift(seen["shifts"]), seen["shifts"])  # fmt: skip


def pages(site: Path, asked: list[str]) -> list[str]:
    """The site's pages whose path contains one of the asked words; all of them without any."""
    found = sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if "_static" not in path.parts and path != site / "index.html"
    )
    return [name for name in found if not asked or any(word in name for word in asked)]


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser_path() -> str | None:
    """A Chromium on this machine: CHROMIUM, the usual names, or macOS's application."""
    asked = os.environ.get("CHROMIUM")
    if asked:
        return asked if Path(asked).exists() else None
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    for app in ("Google Chrome", "Chromium"):
        path = Path(f"/Applications/{app}.app/Contents/MacOS/{app}")
        if path.exists():
            return str(path)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="*", help="part of a page's path (default: all pages)")
    parser.add_argument("--site", type=Path, default=SITE, help="folder of the built pages")
    parser.add_argument("--desk", action="store_true", help="1280 px, no brakes")
    parser.add_argument("--shifts", action="store_true", help="list what jumped, too")
    options = parser.parse_args()
    names = pages(options.site, options.page)
    if not names:
        print(f"No such page in {options.site}. Has the book been built?", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    print(f"{'page':<36} {'paint s':>8} {'maths s':>8} {'kB':>7} {'shift':>6}")
    with serve(options.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"]
        )
        for name in names:
            size = DESK if options.desk else PHONE
            found = weigh(browser, f"{address}/{name}", size, slow=not options.desk)
            drawn = "–" if found.drawn is None else f"{found.drawn:.1f}"
            print(f"{name:<36} {found.paint:>8.1f} {drawn:>8} {found.kilobytes:>7.0f} "
                  f"{found.shift:>6.3f}", flush=True)  # fmt: skip
            if options.shifts:
                for shift in found.shifts:
                    if shift["size"] > 0.002:
                        print(f"    {shift['at']:8.0f} ms {shift['size']:.3f} {shift['where']}")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
