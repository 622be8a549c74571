"""What the theme leaves undone on the written pages, mended once the site is built.

Each page is read token by token and only the places named here are rewritten; every other byte
stays as it was, and a page that is mended already stays as it is. What is mended:

- one needless script of 1.5 MB, and other leftovers, are dropped (`_unwanted`);
- controls are called by the words that one sees on them, and ids occur once (`_attributes`);
- Japanese words are marked as Japanese (`japanese`);
- the colours are known before the first paint (`COLOURS`), and a page has them without a script;
- formulas have their place before they are drawn (`place`), and MathJax comes only with them;
- without a script there is a way to the contents (`NO_SCRIPT`).
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import texsize

Attributes = list[tuple[str, str | None]]

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source",
        "track", "wbr"}  # fmt: skip
# In these, text is no prose: it is code, it is no text at all, or no tag may stand in it.
NO_PROSE = {"code", "kbd", "math", "option", "pre", "samp", "script", "style", "svg", "textarea",
            "title"}  # fmt: skip
# The classes in which MathJax looks for formulas (`processHtmlClass` of its configuration).
MATHS = {"math", "mathjax_process", "output_area", "tex2jax_process", "text_latex"}

_LETTER = (
    "\u3005-\u3007\u3041-\u3096\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
_MARK = "\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff5e"  # Japanese brackets and points
JAPANESE = re.compile(f"[{_LETTER}{_MARK}]*[{_LETTER}][{_LETTER}{_MARK}]*")

COLOURS = """<script>
    // Before anything is painted: the reader's own choice of colours, else the system's.
    (() => {
      const root = document.documentElement;
      let mode = null;
      try { mode = localStorage.getItem("mode"); } catch { /* a browser that stores nothing */ }
      if (mode !== "light" && mode !== "dark") mode = "auto";
      const dark = mode === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches
        : mode === "dark";
      root.dataset.mode = mode;
      root.dataset.theme = dark ? "dark" : "light";
    })();
  </script>"""

# Until MathJax has drawn them, formulas keep their places free (book.css, `maths-wait`). The fonts
# that nearly every formula needs come while it sets the formulas, not after it has set them; a
# page opened from disk may not ask for them so, and has them at once anyway.
WAIT = """
    document.documentElement.classList.add("maths-wait");
    MathJax.startup = {
      ready() {
        const base = document.querySelector("script[src*='/mathjax/']").src;
        const fonts = ["Zero", "Math-Italic", "Main-Regular"];
        for (const name of location.protocol === "file:" ? [] : fonts) {
          const font = document.createElement("link");
          Object.assign(font, {rel: "preload", as: "font", type: "font/woff", crossOrigin: "",
            href: new URL(`output/chtml/fonts/woff-v2/MathJax_${name}.woff`, base).href});
          document.head.append(font);
        }
        MathJax.startup.defaultReady();
      },
      pageReady: () => MathJax.startup.defaultPageReady()
        .finally(() => document.documentElement.classList.remove("maths-wait")),
    };"""
GIVE_UP = "document.documentElement.classList.remove('maths-wait')"

# The contents are in the page; without a script their button is dead, and book.css shows them
# after the text on a narrow screen.
NO_SCRIPT = (
    '<noscript><p class="to-contents"><a href="#pst-primary-sidebar">'
    "Contents of the book</a></p></noscript>\n  "
)


def japanese(text: str) -> str:
    """Text of a page with each Japanese run in a span that says so."""
    return JAPANESE.sub(lambda run: f'<span lang="ja">{run[0]}</span>', text)


def place(tag: str, tex: str) -> str:
    """The style that says how wide an inline formula will be, or how high a displayed one."""
    size = texsize.width(tex) if tag == "span" else texsize.height(tex)
    return f"--tex:{size:g}em"


def _attributes(tag: str, given: Attributes) -> Attributes:
    """The attributes that a tag should have."""
    old = dict(given)
    classes = (old.get("class") or "").split()
    drop: set[str] = set()
    put: dict[str, str] = {}
    if tag == "html" and old.get("data-theme") == "auto":
        put["data-theme"] = "light"  # without a script; COLOURS knows better
    if tag == "summary" and old.get("aria-label") == "Toggle hidden content":
        drop.add("aria-label")  # 'Show the solution' says more, and one can see it
    if "search-button-field" in classes:
        drop.add("aria-label")  # 'Search Ctrl+K' is what one sees
    if tag == "div" and {"citation-list", "citation"} & set(classes):
        drop.add("role")  # a list of things that are no list items; one of them out of date
    if tag == "dl" and not given:
        put["role"] = "presentation"  # the arguments of a signature, of which none has a term
    if "toctree-toggle" in classes and old.get("role") == "presentation":
        put |= {"role": "img", "aria-label": "The pages below"}  # else its <summary> has no name
    if old.get("id") == "exercise-content":
        drop.add("id")  # the same for every exercise of a page
    if old.get("id") == "pst-primary-sidebar":
        put |= {"role": "navigation", "aria-label": "Book"}  # its logo lies in no landmark else
    if tag == "script" and "/mathjax/" in (old.get("src") or ""):
        put["onerror"] = GIVE_UP
    kept = [(name, put.pop(name, value)) for name, value in given if name not in drop]
    return [*kept, *put.items()]


def _tag(tag: str, attributes: Attributes, end: str) -> str:
    words = [tag]
    for name, value in attributes:
        words.append(name if value is None else f'{name}="{html.escape(value)}"')
    return f"<{' '.join(words)}{end}"


class _Page(HTMLParser):
    """Reads a page and notes what to rewrite in it, by position."""

    def __init__(self, page: str, maths: bool) -> None:
        super().__init__(convert_charrefs=False)
        self.page = page
        self.maths = maths
        self.edits: list[tuple[int, int, str]] = []
        self.found_maths = False
        self._lines = [0]
        for match in re.finditer("\n", page):
            self._lines.append(match.end())
        self._open: list[tuple[str, bool]] = []  # (tag, whether text in it is prose)
        self._element: tuple[str, Attributes, int, int] | None = None  # script or formula, open now
        self._viewports = 0
        self.feed(page)
        self.close()

    def _here(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        begin = self._here()
        raw = self.get_starttag_text() or ""
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        self.found_maths |= bool(MATHS & classes)
        if given.get("id") == "pst-scroll-pixel-helper" and "to-contents" not in self.page:
            self.edits.append((begin, begin, NO_SCRIPT))
        if tag == "meta" and self._unwanted_meta(given):
            self.edits.append((begin, begin + len(raw), ""))
            return
        wanted = _attributes(tag, attrs)
        if wanted != attrs:
            end = "/>" if raw.endswith("/>") else ">"
            self.edits.append((begin, begin + len(raw), _tag(tag, wanted, end)))
        if tag == "script" or (tag in {"span", "div"} and "math" in classes):
            self._element = (tag, attrs, begin, begin + len(raw))
        if tag not in VOID and not raw.endswith("/>"):
            prose = self._open[-1][1] if self._open else True
            prose = prose and tag not in NO_PROSE and "math" not in classes
            self._open.append((tag, prose and given.get("lang") != "ja"))

    handle_startendtag = handle_starttag

    def _unwanted_meta(self, given: dict[str, str | None]) -> bool:
        if given.get("name") == "viewport":
            self._viewports += 1
            return self._viewports > 1
        return given.get("name") == "docsearch:version" and not given.get("content")

    def handle_endtag(self, tag: str) -> None:
        begin = self._here()
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0] == tag:
                del self._open[at:]
                break
        if self._element is None or self._element[0] != tag:
            return
        _, attrs, start, content = self._element
        self._element = None
        if tag == "script":
            self._script(dict(attrs), start, self.page[content:begin], begin + len("</script>"))
        else:
            self._formula(tag, attrs, start, content, begin)

    def _script(self, given: dict[str, str | None], start: int, code: str, end: int) -> None:
        source = given.get("src") or ""
        if self._unwanted(source, given.get("type") or "", code):
            self.edits = [edit for edit in self.edits if edit[0] < start]
            self.edits.append((start, end, ""))
        elif 'localStorage.getItem("theme")' in code:
            self.edits.append((start, end, COLOURS))
        elif "window.MathJax =" in code and "maths-wait" not in code:
            at = end - len("</script>")
            self.edits.append((at, at, ";" + WAIT))

    def _unwanted(self, source: str, kind: str, code: str) -> bool:
        """A script that draws icons which the web font has, or one that nothing here needs."""
        of_maths = "/mathjax/" in source or "window.MathJax =" in code
        return (
            "scripts/fontawesome.js" in source
            or kind == "text/x-thebe-config"
            or code.strip() == "kernelName = 'python3'"
            or (of_maths and not self.maths)
        )

    def _formula(self, tag: str, attrs: Attributes, start: int, content: int, end: int) -> None:
        tex = html.unescape(self.page[content:end])
        begins = re.search(r"\\[(\[]", tex)
        if begins and "style" not in dict(attrs):
            wanted = [*attrs, ("style", place(tag, tex[begins.start() :]))]
            self.edits.append((start, content, _tag(tag, wanted, ">")))

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][1]:
            marked = japanese(data)
            if marked != data:
                begin = self._here()
                self.edits.append((begin, begin + len(data), marked))


def mend(page: str) -> str:
    """A page of the site as it should be; one that is mended already comes back as it is."""
    read = _Page(page, maths=True)
    if not read.found_maths:
        read = _Page(page, maths=False)
    done = 0
    parts: list[str] = []
    for begin, end, text in sorted(read.edits, key=lambda edit: edit[:2]):
        parts += [page[done:begin], text]
        done = end
    return "".join([*parts, page[done:]])


def _finish(app, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue
        page = path.read_text(encoding="utf-8")
        mended = mend(page)
        if mended != page:
            path.write_text(mended, encoding="utf-8")


def setup(app):
    app.add_js_file("focus.js", loading_method="defer")
    # Last of all: what other extensions write is mended, too.
    app.connect("build-finished", _finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
