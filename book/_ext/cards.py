"""The pictures that stand for pages where links to them are shared: 1200 × 630, made at build time.

A chapter's card shows its title over the first figure that its cells drew; every other page shares
the book's card, with the figure of the front page.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from executed import executed

ROOT = Path(__file__).resolve().parents[2]
SIZE = (1200, 630)
MARGIN = 56
INK, MUTED, BLUE, ORANGE = "#1c2126", "#4f5a65", "#0072B2", "#E69F00"
FRONT = ROOT / "book" / "_static" / "rank-plot.png"


def first_figure(notebook: dict | None) -> bytes | None:
    """The first picture of an executed notebook that has a figure's caption, if there is one."""
    for cell in notebook["cells"] if notebook else []:
        if not cell["metadata"].get("mystnb", {}).get("figure"):
            continue
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/webp", "image/jpeg"):
                if found := output.get("data", {}).get(kind):
                    return base64.b64decode("".join(found))
    return None


def _font(size: int, bold: bool = False):
    """DejaVu Sans, which comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _lines(draw, text: str, font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def draw_card(title: str, book: str, figure: bytes) -> bytes:
    """A card as PNG bytes: the title, the figure under it, and the book's mark and name."""
    from PIL import Image, ImageDraw

    card = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(card)
    wide = SIZE[0] - 2 * MARGIN
    bold = _font(46, bold=True)
    top = MARGIN - 8
    for line in _lines(draw, title, bold, wide)[:2]:
        draw.text((MARGIN, top), line, font=bold, fill=INK)
        top += 58
    foot = SIZE[1] - MARGIN
    draw.rectangle((MARGIN, foot - 28, MARGIN + 7, foot), fill=BLUE)
    draw.rectangle((MARGIN + 11, foot - 28, MARGIN + 28, foot - 21), fill=ORANGE)
    draw.rectangle((MARGIN + 11, foot - 17, MARGIN + 28, foot), outline=BLUE, width=2)
    if title != book:
        draw.text((MARGIN + 42, foot - 30), book, font=_font(26), fill=MUTED)
    picture = Image.open(io.BytesIO(figure)).convert("RGBA")
    high = foot - 44 - (top + 16)
    scale = min(wide / picture.width, high / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    card.paste(picture, ((SIZE[0] - size[0]) // 2, top + 16 + (high - size[1]) // 2), picture)
    out = io.BytesIO()
    card.save(out, "PNG", optimize=True)
    return out.getvalue()


def card_of(app, pagename: str, title: str) -> tuple[str, str]:
    """Draw the page's card, unless it is there: (its path from the site's root, what it shows)."""
    book = app.config.html_title
    figure = first_figure(executed(app, pagename).notebook)
    name, shown = (pagename.replace("/", "-"), title) if figure else ("book", book)
    path = Path(app.outdir) / "cards" / f"{name}.png"
    if figure or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_card(shown, book, figure or FRONT.read_bytes()))
    return f"cards/{name}.png", f"The title “{shown}” over a figure"
