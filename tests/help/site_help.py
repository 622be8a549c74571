"""Opening the built pages in a browser that cannot reach the network."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "_build" / "html"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
# With no built site there are no pages to list; then the one entry makes `site` fail and say so.
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for folder in ("book", "notebooks")
    for path in (SITE / folder).rglob("*.html")
) or ["book/index.html"]


class Visit:
    """A page opened with the network off, and everything that went wrong on the way."""

    def __init__(self, browser, address: str, page: str):
        self.name = page
        self.address = address
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(viewport=DESK, color_scheme="light")
        self.context.route("**/*", self._only_local)
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._response)
        self.page.goto(f"{address}/{page}", wait_until="load")
        self.page.wait_for_function(
            "!window.MathJax || !MathJax.startup || !MathJax.startup.promise"
            " || MathJax.startup.promise.then(() => true)"
        )

    def _only_local(self, route):
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.refused.append(route.request.url)
            route.abort()

    def _console(self, message):
        if message.type == "error":
            self.errors.append(message.text)

    def _response(self, answer):
        if answer.status >= 400:
            self.errors.append(f"{answer.status} {answer.url}")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.context.close()
