"""The pages' pictures and formulas after the build: extensions `pictures` and `formulas`."""

from __future__ import annotations

import base64
import io
import re

import formulas
import numpy as np
import panels
import pictures
import pytest
from PIL import Image
from tiny_site import FIGURE, build, notebook


def png(width: int = 300, height: int = 150, *, noise: bool = False, mode: str = "RGB") -> bytes:
    """A drawing of two colours, or a smooth picture with grain, as a photograph has it."""
    rows, columns = np.mgrid[:height, :width]
    if noise:
        grain = np.random.default_rng(0).normal(0, 6, (height, width, 1))
        pixels = 128 + 80 * np.sin(rows / 40 + columns / 60)[..., None] + grain + [0, 5, 10]
    else:
        pixels = np.where(((rows // 10 + columns // 10) % 2)[..., None], 255, [0, 114, 178])
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def drawn(data: bytes) -> dict:
    return {"image/png": base64.b64encode(data).decode(), "text/plain": "<Figure>"}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


def tags(page: str) -> list[str]:
    return [found[0] for found in pictures.IMG.finditer(page)]


def test_a_drawing_stays_exact_and_takes_less():
    data = png(mode="RGBA")
    small = pictures.webp(data)
    assert Image.open(io.BytesIO(small)).format == "WEBP"
    assert len(small) < len(data)
    assert (pixels(small) == pixels(data)).all()


def test_what_shines_through_stays_so():
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 100))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert Image.open(io.BytesIO(pictures.webp(buffer.getvalue()))).mode == "RGBA"


def test_a_photograph_is_nearly_exact_where_that_saves_much():
    data = png(600, 400, noise=True)
    small = pictures.webp(data)
    assert len(small) < len(data) / 3
    assert np.abs(pixels(small) - pixels(data)).mean() < 4


def test_a_page_shows_the_new_file_with_size_words_and_class(tmp_path):
    page = notebook(drawn(png(300, 150)), mystnb=FIGURE)
    assert build(tmp_path, {"index.ipynb": page}, ("figures", "pictures")) == ""
    text = (tmp_path / "out" / "index.html").read_text()
    (tag,) = tags(text)
    assert pictures.attribute(tag, "alt") == FIGURE["image"]["alt"]
    # 300 dots at 150 to the inch are two inches, and a CSS inch has 96 pixels.
    assert (pictures.attribute(tag, "width"), pictures.attribute(tag, "height")) == ("192", "96")
    assert pictures.attribute(tag, "class") == "plot"
    assert pictures.attribute(tag, "loading") is None, "the first picture is wanted at once"
    name = re.fullmatch(r"_images/(\w+)\.webp", pictures.attribute(tag, "src"))[1]
    assert [path.name for path in (tmp_path / "out" / "_images").iterdir()] == [f"{name}.webp"]


def test_a_cell_can_say_that_it_shows_a_picture(tmp_path):
    told = {**FIGURE, "image": {**FIGURE["image"], "classes": "picture"}}
    build(tmp_path, {"index.ipynb": notebook(drawn(png()), mystnb=told)}, ("pictures",))
    (tag,) = tags((tmp_path / "out" / "index.html").read_text())
    assert pictures.attribute(tag, "class").split() == ["picture"]


def test_all_but_the_first_picture_wait(tmp_path):
    page = notebook(drawn(png(40, 20)), drawn(png(20, 40)))
    assert build(tmp_path, {"index.ipynb": page}, ("pictures",)) == ""
    first, second = tags((tmp_path / "out" / "index.html").read_text())
    assert pictures.attribute(first, "loading") is None
    assert pictures.attribute(second, "loading") == "lazy"
    assert pictures.attribute(second, "decoding") == "async"


def site(folder, **pages):
    (folder / "_images").mkdir()
    (folder / "_images" / "a.png").write_bytes(png())
    (folder / "_images" / "card.png").write_bytes(png())
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def test_addresses_of_the_old_file_follow_and_others_stay(tmp_path):
    head = '<meta property="og:image" content="https://x.org/_images/a.png">'
    other = '<meta name="card" content="https://x.org/_images/card.png">'
    body = '<a href="_images/a.png"><img alt="x > y" src="_images/a.png"></a>'
    assert pictures.convert_site(site(tmp_path, one=head + other + body)) == 1
    text = (tmp_path / "one.html").read_text()
    assert 'content="https://x.org/_images/a.webp"' in text
    assert 'href="_images/a.webp"' in text
    assert other in text, "a file that no page shows stays what it is"
    assert (tmp_path / "_images" / "card.png").is_file()


def test_doing_it_again_changes_nothing(tmp_path):
    pictures.convert_site(site(tmp_path, one='<img alt="A board" src="_images/a.png">'))
    before = (tmp_path / "one.html").read_text()
    assert pictures.convert_site(tmp_path) == 0
    assert (tmp_path / "one.html").read_text() == before


def test_a_picture_inside_the_page_is_turned_too(tmp_path):
    data = base64.b64encode(png(40, 20)).decode()
    sized = f'<img width="7" height="5" alt="A board" src="data:image/png;base64,{data}">'
    pictures.convert_site(site(tmp_path, one=sized.replace('width="7" height="5" ', "") + sized))
    bare, given = tags((tmp_path / "one.html").read_text())
    for tag in (bare, given):
        assert pictures.attribute(tag, "src").startswith("data:image/webp;base64,")
    assert (pictures.attribute(bare, "width"), pictures.attribute(bare, "height")) == ("40", "20")
    assert pictures.attribute(given, "width") == "7", "what the cell says holds"


# ---------------------------------------------------------------- formulas and commas

M = '<span class="math notranslate nohighlight">\\(x\\)</span>'


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        (f"with {M}, and", f"{M},"),
        (f"is {M}. Then", f"{M}."),
        (f"({M})", f"({M})"),
        (f"({M}), so", f"({M}),"),
        (f"“{M}”?", f"“{M}”?"),
        (f"an {M}-fold sum", f"{M}-"),
    ],
)
def test_punctuation_is_held_to_its_formula(html, kept):
    assert f'<span class="held">{kept}</span>' in formulas.held(html)


@pytest.mark.parametrize("html", [f"the {M} is", f"{M} and {M}", "no formula, here."])
def test_a_formula_between_spaces_stays_as_it_is(html):
    assert formulas.held(html) == html


def test_pages_hold_their_formulas(tmp_path):
    build(tmp_path, {"index.md": "# Title\n\nLet $x$, a number.\n"}, ("formulas",))
    assert '<span class="held">' in (tmp_path / "out" / "index.html").read_text()


# ---------------------------------------------------------------- panels


def sheet(*boxes: tuple[int, int, int, int], color=(40, 40, 40)) -> Image.Image:
    """Filled rectangles on white, each with a white rectangle in it."""
    dots = np.full((200, 400, 3), 255, np.uint8)
    for left, top, right, bottom in boxes:
        dots[top:bottom, left:right] = color
        dots[top + 20 : bottom - 20, left + 20 : right - 20] = 255
    return Image.fromarray(dots)


def test_panels_are_found_with_the_white_in_them():
    boxes = [(10, 10, 150, 190), (200, 20, 390, 180)]
    assert panels.panels(sheet(*boxes)) == boxes


def test_lines_and_letters_are_no_panels():
    dots = np.asarray(sheet()).copy()
    dots[150, 20:380] = 0  # an axis
    dots[20:150, 20] = 0
    dots[30:42, 100:108] = 0  # a letter
    for x in range(20, 380):
        dots[140 - x // 4, x] = 90  # a curve
    assert panels.panels(Image.fromarray(dots)) == []


def test_a_coloured_table_on_white_turns_around_with_the_plot():
    thin = sheet((10, 10, 190, 190), color=(0, 114, 178))
    dots = np.asarray(thin).copy()
    dots[15:185, 15:185] = 255
    assert panels.panels(Image.fromarray(dots)) == []


def test_a_mask_puts_each_layer_where_its_panel_is():
    """CSS: the layer's point at x % lies on the box's point at x %."""
    value = panels.mask([(100, 0, 200, 50)], (400, 200))
    x, y, width, height = map(float, re.findall(r"(-?[\d.]+)%", value))
    assert (width, height) == (25, 25)
    assert x / 100 * (400 - 100) == pytest.approx(100, abs=0.01)
    assert y == 0


def test_a_picture_gets_its_panels_over_it_and_a_dimmed_one_does_not(tmp_path):
    buffer = io.BytesIO()
    sheet((10, 10, 150, 190)).save(buffer, format="PNG")
    for kinds, layers in (("picture", 1), ("picture dimmed", 0), ("", 0)):
        folder = tmp_path / (kinds or "plot")
        folder.mkdir()
        (folder / "_images").mkdir()
        (folder / "_images" / "a.png").write_bytes(buffer.getvalue())
        page = folder / "one.html"
        page.write_text(f'<img class="{kinds}" alt="A frame" src="_images/a.png">')
        pictures.convert_site(folder)
        text = page.read_text()
        assert text.count('class="panels"') == layers, kinds
        assert text.count("url(_images/a.webp)") == layers
        (tag,) = tags(text)
        shown = set(pictures.attribute(tag, "class").split())
        assert shown == set(kinds.split() or ["plot"]) | ({"framed"} if layers else set())


def test_a_picture_that_was_webp_before_gets_its_size_once(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "still.webp").write_bytes(pictures.webp(png(300, 150)))
    (tmp_path / "a.html").write_text('<p><img alt="A plot." src="_images/still.webp"></p>')
    pictures.convert_site(tmp_path)
    first = (tmp_path / "a.html").read_text()
    (tag,) = tags(first)
    assert (pictures.attribute(tag, "width"), pictures.attribute(tag, "height")) == ("192", "96")
    assert pictures.attribute(tag, "class") == "plot"
    pictures.convert_site(tmp_path)
    assert (tmp_path / "a.html").read_text() == first
