"""The pictures of the pages: small files, known sizes, and a look for the dark.

When all pages are written, every PNG that a page shows becomes WebP: the files in _images, and
those that a cell's HTML carries inside it. A drawing stays exact to the pixel. A picture whose
exact form is large, as that of a photograph is, is stored at quality 90. Addresses of the old file
elsewhere in a page (links, what other sites show of it) follow.

Each such <img> gets its width and height, so that the text does not jump when it arrives, and all
but a page's first one wait until they are near. The figures are drawn at 150 dots to the inch, and
a CSS inch has 96: text of 11 points then is nearly as large as the page's own, and a dense screen
has 1.6 dots for each of CSS's pixels.

An <img> also gets the class `plot`, unless it has the class `picture`. In the dark, book.css turns
a plot's lightness around, so that it lies on the page's own ground. A picture shows photographs,
digits, or shades that the text names; a cell says so in its metadata: "mystnb": {"image": {"alt":
…, "classes": "picture"}}. Its panels are then shown as they are, over the figure turned around
(`framed`). Where none are found, and where the cell says "picture dimmed" because its shades run
through the whole, the figure is only dimmed.
"""

from __future__ import annotations

import base64
import html
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from panels import mask, panels
from PIL import Image

DPI = 150  # of the book's figures: minilora.lab.plotting.use_style
CSS_DPI = 96
LARGE = 100_000  # bytes: an exact picture beyond this may be stored nearly exact

IMG = re.compile(r"""<img\b(?:[^>"']|"[^"]*"|'[^']*')*>""")
INSIDE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def webp(data: bytes) -> bytes:
    """The picture as WebP: exact, or at quality 90 where that saves a quarter of much."""
    image = Image.open(io.BytesIO(data))
    if image.mode in ("P", "LA", "PA") or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 255:
        image = image.convert("RGB")  # nothing shines through
    exact, near = io.BytesIO(), io.BytesIO()
    image.save(exact, format="WEBP", lossless=True, method=4)
    if exact.tell() > LARGE:
        image.save(near, format="WEBP", quality=90, method=6)
        if near.tell() < 0.75 * exact.tell():
            return near.getvalue()
    return exact.getvalue()


def attribute(tag: str, name: str) -> str | None:
    """The value of an attribute of a start tag, unescaped; None where it is missing."""
    found = re.search(rf"""\s{name}\s*=\s*(?:"([^"]*)"|'([^']*)')""", tag)
    return html.unescape(found[1] if found[1] is not None else found[2]) if found else None


def with_attribute(tag: str, name: str, value: str) -> str:
    """The start tag with one attribute set."""
    written = f' {name}="{html.escape(value)}"'
    old = re.compile(rf"""\s{name}\s*=\s*(?:"[^"]*"|'[^']*')""")
    if old.search(tag):
        return old.sub(lambda _: written, tag, count=1)
    end = re.search(r"\s*/?>$", tag)
    return tag[: end.start()] + written + end[0]


def css_size(size: tuple[int, int]) -> tuple[int, int]:
    """Pixels of a figure of the book -> its width and height on a page."""
    return round(size[0] * CSS_DPI / DPI), round(size[1] * CSS_DPI / DPI)


class Converter:
    """Turns the PNGs of one site into WebP, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, tuple[int, int]] = {}  # of the files in _images, by name of the PNG
        self.masks: dict[str, str] = {}  # where the panels of a picture are, for CSS

    def files(self, names: dict[str, bool]) -> None:
        """Write NAME.webp for each NAME.png and take the PNG away; is it a picture, with panels?"""

        def one(name: str) -> None:
            path = self.folder / "_images" / name
            data = path.read_bytes()
            image = Image.open(io.BytesIO(data))
            self.sizes[name] = image.size
            if names[name] and (boxes := panels(image)):
                self.masks[name] = mask(boxes, image.size)
            path.with_suffix(".webp").write_bytes(webp(data))
            path.unlink()

        with ThreadPoolExecutor() as pool:
            list(pool.map(one, sorted(names)))

    def names(self, text: str) -> dict[str, bool]:
        """The PNGs in _images that a page shows and that are there; is it a picture or a plot?"""
        found = {}
        for tag in (match[0] for match in IMG.finditer(text)):
            name = self._name(tag)
            if name and (self.folder / "_images" / name).is_file():
                kinds = (attribute(tag, "class") or "").split()
                found[name] = "picture" in kinds and "dimmed" not in kinds
        return found

    @staticmethod
    def _name(tag: str) -> str | None:
        found = re.fullmatch(r"(?:\.\./)*_images/([^/]+\.png)", attribute(tag, "src") or "")
        return found[1] if found else None

    def _ready(self, source: str) -> Path | None:
        """The file of a picture that was WebP before."""
        found = re.fullmatch(r"(?:\.\./)*_images/([^/]+\.webp)", source)
        path = self.folder / "_images" / found[1] if found else None
        return path if path and path.is_file() else None

    def page(self, text: str) -> str:
        """A page that shows the new files."""
        shown = 0

        def picture(found: re.Match[str]) -> str:
            nonlocal shown
            tag = found[0]
            source = attribute(tag, "src") or ""
            name = self._name(tag)
            inside = INSIDE.fullmatch(source)
            if inside:
                data = base64.b64decode(inside[1])
                address = "data:image/webp;base64," + base64.b64encode(webp(data)).decode()
                dots = Image.open(io.BytesIO(data)).size
            elif name in self.sizes:
                address = source.removesuffix(".png") + ".webp"
                dots = self.sizes[name]
            elif (ready := self._ready(source)) and attribute(tag, "width") is None:
                address = source
                dots = Image.open(ready).size
            else:
                return tag
            shown += 1
            tag = with_attribute(tag, "src", address)
            wide, high = dots if inside else css_size(dots)
            if attribute(tag, "width") is None and attribute(tag, "height") is None:
                tag = with_attribute(tag, "width", str(wide))
                tag = with_attribute(tag, "height", str(high))
            if shown > 1:
                tag = with_attribute(tag, "loading", "lazy")
                tag = with_attribute(tag, "decoding", "async")
            if inside:
                return tag  # its looks are the business of the cell that wrote it
            kinds = (attribute(tag, "class") or "").split()
            over = ""
            if "picture" not in kinds:
                kinds.append("plot")
            elif name in self.masks:
                kinds.append("framed")
                over = (
                    f'<span class="panels" aria-hidden="true" style="mask: {self.masks[name]};'
                    f' background-image: url({address})"></span>'
                )
            tag = with_attribute(tag, "class", " ".join(kinds))
            # On a phone it scrolls sideways in this box: there it stays wide enough to be read.
            shape = f"--full: {wide}px; --shape: {dots[0]} / {dots[1]}"
            return f'<span class="picture-box" style="{shape}">{tag}{over}</span>'

        text = IMG.sub(picture, text)
        for name in self.sizes:  # links to the file, and what the page's head says of it
            text = text.replace(f"_images/{name}", f"_images/{name.removesuffix('.png')}.webp")
        return text


def convert_site(folder: Path) -> int:
    """Turn all pictures of a built site; how many files. Doing it again changes nothing."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.html"))}
    converter = Converter(folder)
    shown: dict[str, bool] = {}
    for text in pages.values():
        shown |= converter.names(text)
    converter.files(shown)
    for path, text in pages.items():
        new = converter.page(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
    return len(converter.sizes)


def _finish(app, exception) -> None:
    if exception is None and app.builder.format == "html":
        convert_site(Path(app.outdir))


def setup(app):
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
