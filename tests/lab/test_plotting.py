"""The house style, labels on lines, and the slider's HTML."""

from __future__ import annotations

import base64
import io
import re
import sys
import types
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from minilora.lab import plotting, slider  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_figures() -> Any:
    with plt.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


def test_every_thing_has_a_colour_and_a_second_cue() -> None:
    assert set(plotting.COLORS) == set(plotting.MARKERS) == set(plotting.LINESTYLES)
    arms = ["lora", "full", "head", "scratch", "random", "logistic", "neighbours"]
    for table in (plotting.COLORS, plotting.MARKERS):
        assert len({table[arm] for arm in arms}) == len(arms)
    for name, style in plotting.LINESTYLES.items():
        plt.plot([0, 1], color=plotting.COLORS[name], marker=plotting.MARKERS[name], ls=style)
    plt.gcf().canvas.draw()


def test_label_line_takes_the_end_and_the_colour_of_a_line() -> None:
    _, ax = plt.subplots()
    (line,) = ax.plot([1, 2, 3, 4], [5, 6, 7, np.nan], color="#D55E00")
    label = plotting.label_line(ax, line, "full")
    assert label.xy == (3, 7)
    assert label.get_color() == plotting.word_color("#D55E00") != "#D55E00"
    assert plotting.label_line(ax, (1.5, 2.5), "here").xy == (1.5, 2.5)
    (empty,) = ax.plot([], [])
    with pytest.raises(ValueError, match="no finite point"):
        plotting.label_line(ax, empty, "nothing")


@pytest.mark.parametrize("color", [*plotting.COLORS.values(), plotting.PALE, "#FFFFFF", "yellow"])
def test_words_stand_out_from_white_in_every_colour(color: str) -> None:
    word = plotting.word_color(color)
    assert plotting.contrast(word) >= 4.5
    if plotting.contrast(color) >= plotting.READABLE:
        assert word == color


def test_a_darker_word_keeps_the_hue_of_its_line() -> None:
    import colorsys

    from matplotlib.colors import to_rgb

    assert plotting.contrast("#000000") == pytest.approx(21)
    assert plotting.contrast("#FFFFFF") == pytest.approx(1)
    assert plotting.contrast("#E69F00") == pytest.approx(2.25, abs=0.01)
    for color in ("#E69F00", "#56B4E9", "#CC79A7"):
        before, after = (
            colorsys.rgb_to_hsv(*to_rgb(c)) for c in (color, plotting.word_color(color))
        )
        assert after[0] == pytest.approx(before[0], abs=0.02) and after[2] < before[2]


def test_numbers_are_written_with_a_true_minus_and_no_minus_zero() -> None:
    assert plotting.written(-0.04) == "0.0" and plotting.written(-1.25, 2) == "−1.25"
    assert plotting.written(0.96, sign=True) == "+1.0" and plotting.written(3) == "3.0"
    assert plotting.interval(1.24, -0.3, 2.7) == "+1.2 (−0.3 to +2.7)"
    assert plotting.interval(-0.0004, -0.01, 0.012, 3) == "+0.000 (−0.010 to +0.012)"


def test_tables_write_their_numbers_and_pictures_have_no_ticks() -> None:
    _, (left, right) = plt.subplots(1, 2)
    plotting.show_table(left, [[1, -2], [0.001, -0.001]], digits=1, rows=["a", "b"])
    assert [text.get_text() for text in left.texts] == ["1.0", "−2.0", "0.0", "0.0"]
    plotting.show_picture(right, np.zeros((3, 4)), "dark")
    assert not len(right.get_xticks())
    plotting.show_picture(right, [[-1.0, 0.0, 2.0]], signed=True)
    low, high = right.images[-1].get_clim()
    assert low == -high < 0
    figure = plotting.show_product([1, 2, 3], [4, 5])
    assert [t.get_text() for t in figure.axes[3].texts] == ["4", "5", "8", "10", "12", "15"]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_png_keeps_the_pixels() -> None:
    grey = np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, 0.2]])
    np.testing.assert_array_equal(decoded(slider.png(grey)), [[0, 128, 255], [0, 255, 51]])
    colour = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(decoded(slider.png(colour)), colour)
    assert decoded(slider.png(np.zeros((40, 60)), width=30)).shape == (20, 30)
    assert decoded(slider.png(np.zeros((4, 6)), width=30)).shape == (4, 6)
    for bad in (np.zeros(3), np.zeros((2, 2, 4)), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="picture"):
            slider.png(bad)


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def example(**options: Any) -> slider.Slider:
    images = [np.full((4, 6), level) for level in (0.0, 0.5, 1.0)]
    return slider.slider(images, ["dark", "<grey>", "light"], "A plain picture.", **options)


def test_slider_is_self_contained_and_has_words_for_every_picture() -> None:
    text = example(start=1, name="tone", caption="Three tones & no more")._repr_html_()
    reader = Reader(text)
    images = reader.all("img")
    assert [image["alt"] for image in images] == [
        f"A plain picture. Here: {label}" for label in ("dark", "<grey>", "light")
    ]
    pixels = [
        decoded(base64.b64decode(str(image["src"]).removeprefix("data:image/webp;base64,")))[
            0, 0, 0
        ]
        for image in images
    ]
    assert pixels == [0, 128, 255]
    (control,) = reader.all("input")
    assert (control["type"], control["min"], control["max"], control["value"]) == (
        *("range", "0", "2", "1"),
    )
    assert "<grey>" not in text  # labels are escaped
    assert "Three tones &amp; no more" in text
    assert not re.search(r"https?://|src=\"(?!data:)|@[A-Z]+@", text)


def test_slider_shows_all_its_pictures_where_scripts_do_not_run() -> None:
    """Nothing is hidden but by rules that need the attribute which the script sets."""
    text = example()._repr_html_()
    hiding = re.findall(r"([^{}\n]+)\{[^}]*display:none", text)
    assert hiding == [".ml-slider[data-ready] .ml-frame:not([data-on])", ".ml-slider .ml-control"]


def test_slider_is_the_same_every_time() -> None:
    assert example()._repr_html_() == example()._repr_html_()
    assert repr(example()) == "Slider of 3 pictures: dark … light"


def test_slider_takes_figures_and_falls_back_to_a_contact_sheet() -> None:
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    one = slider.slider([figure], ["a line"], "A rising line.")
    assert not plt.fignum_exists(figure.number)
    assert len(decoded(one._repr_png_()).shape) == 3
    assert len(decoded(example()._repr_png_()).shape) == 3


def test_slider_refuses_what_it_cannot_show() -> None:
    picture = np.zeros((2, 2))
    with pytest.raises(ValueError, match="at least one"):
        slider.slider([], [], "x")
    with pytest.raises(ValueError, match="1 pictures and 2 labels"):
        slider.slider([picture], ["a", "b"], "x")
    with pytest.raises(ValueError, match="cannot see"):
        slider.slider([picture], ["a"], " ")
    with pytest.raises(ValueError, match="start"):
        slider.slider([picture], ["a"], "x", start=1)


def test_glue_keeps_values_only_where_the_book_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    module = types.ModuleType("myst_nb")
    module.glue = lambda name, value, display: kept.update({name: value})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "myst_nb", module)
    plotting.glue("answer", np.float64(42))
    assert kept == {"answer": 42}
    assert type(kept["answer"]) is float
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    plotting.glue("answer", 43)
    assert kept == {"answer": 42}
