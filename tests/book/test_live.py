"""The live model: the directive on tiny projects, and on the built site what the page computes."""

from __future__ import annotations

import base64
import json
import subprocess

import live
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from site_help import DESK, PHONE, ROOT, Visit
from sphinx.errors import ExtensionError
from tiny_site import build
from torch.nn import functional as F

from minilora import LoRAConfig, add_lora, lora_layers, set_strength
from minilora.experiments.rank import PROFILES
from minilora.experiments.recording import read_recording
from minilora.lab import data
from minilora.lab.pretrained import pretrained_adder
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

PAGE = "notebooks/08_lora_transformer.html"
WEIGHTS = "window.LIVE_WEIGHTS={};\n"
ON_PAGE = (
    "# One\n\n:::{live}\n:name: fig-one\nWhat the **model** does.\n:::\n\nSee {numref}`fig-one`.\n"
)
SETTINGS = "numfig = True\n"


# ---------------------------------------------------------------- the directive


@pytest.fixture
def made(monkeypatch):
    """The tool that trains is replaced by one that writes three small files; how often it ran."""
    runs = []

    def make(folder):
        if (folder / "weights.js").exists():
            return
        runs.append(folder)
        folder.mkdir(parents=True)
        (folder / "weights.js").write_text(WEIGHTS)
        (folder / "still.json").write_text(json.dumps({"alt": "A 3 and a 4."}))
        (folder / "still.webp").write_bytes(b"RIFF")

    monkeypatch.setattr(live, "make", make)
    monkeypatch.delenv("BOOK_ONLY_CHAPTER", raising=False)
    return runs


def test_the_page_gets_a_picture_a_button_and_the_scripts(tmp_path, made):
    pages = {"index.md": "# I\n\n```{toctree}\none\n```\n", "one.md": ON_PAGE}
    assert build(tmp_path, pages, ("live",), SETTINGS) == ""
    text = (tmp_path / "out" / "one.html").read_text()
    assert 'alt="A 3 and a 4."' in text
    assert "What the <strong>model</strong> does." in text
    assert "Fig. 1" in text
    assert 'class="live-start" hidden' in text, "without scripts there is no button"
    assert [f"live/{name}" in text for name in live.SCRIPTS] == [True] * 3
    assert "weights.js" not in text, "the weights wait for the button"
    assert (tmp_path / "out" / "_static" / "live" / "weights.js").read_text() == WEIGHTS
    assert "live/" not in (tmp_path / "out" / "index.html").read_text()
    assert len(made) == 1


def test_a_page_that_is_not_looked_at_trains_nothing(tmp_path, made, monkeypatch):
    monkeypatch.setenv("BOOK_ONLY_CHAPTER", "notebooks/01_rank")
    build(tmp_path, {"index.md": ON_PAGE}, ("live",), SETTINGS)
    assert made == []


def test_the_key_changes_with_the_package_the_tool_and_the_run(tmp_path):
    (tmp_path / "minilora").mkdir()
    files = [tmp_path / "minilora" / "a.py", tmp_path / "tool.py", tmp_path / "run.json"]
    keys = set()
    for path in [None, *files]:
        if path:
            path.write_text("1")
        keys.add(live.live_key(tmp_path, *files[1:]))
    assert len(keys) == 4


def test_a_tool_that_fails_stops_the_build(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ValueError: no base")
    monkeypatch.setattr(live.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(ExtensionError, match="no base"):
        live.make(tmp_path / "new")


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def visit(browser, address):
    with Visit(browser, address, PAGE) as opened:
        opened.asked = []
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        yield opened


@pytest.fixture(scope="module")
def page(visit):
    """The page with the model running."""
    visit.page.locator(".live-start").click()
    visit.page.wait_for_selector(".live[data-on]")
    return visit.page


@pytest.fixture(scope="module")
def stored(page):
    return page.evaluate("window.LIVE_WEIGHTS")


def unpack(words: str) -> torch.Tensor:
    return torch.tensor(np.frombuffer(base64.b64decode(words), "<f2").astype(np.float64))


def model_of(stored: dict, rank: str | None = None) -> TransformerClassifier:
    """The stored weights in PyTorch, in double precision, with the adapter of that rank."""
    config = dict(stored["config"])
    config["image_size"] = tuple(config["image_size"])
    model = TransformerClassifier(TransformerConfig(**config)).double().eval()
    parts = unpack(stored["base"]).split([size for _, size in stored["parameters"]])
    shapes = model.state_dict()
    named = zip(stored["parameters"], parts, strict=True)
    model.load_state_dict({name: part.reshape(shapes[name].shape) for (name, _), part in named})
    if rank is not None:
        alpha = PROFILES["cpu"].alpha
        add_lora(model, LoRAConfig(r=int(rank), alpha=alpha, targets=list(BLOCK_LINEARS)))
        numbers, at = unpack(stored["adapters"][rank]["weights"]), 0
        with torch.no_grad():
            for layer in lora_layers(model).values():
                for factor in (layer.A, layer.B):
                    factor.copy_(numbers[at : at + factor.numel()].reshape(factor.shape))
                    at += factor.numel()
        assert at == len(numbers)
    return model


def some_pictures() -> torch.Tensor:
    """Ten handwritten pairs and ten of random numbers: (20, 1, 8, 16)."""
    real = data.pairs(data.digits().test, 10, seed=3).x
    noise = torch.rand(10, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    return torch.cat([real, noise]).double()


COMPUTE = """([pictures, rank, strength]) => {
  const model = LiveTransformer.read(window.LIVE_WEIGHTS);
  const weights = rank === null ? model.base
    : LiveTransformer.withAdapter(model.base, model.adapters[rank], strength);
  return pictures.map(picture => {
    const { scores, attention } = LiveTransformer.forward(weights, model.config, picture);
    return [Array.from(scores), attention.map(heads => heads.map(shares => Array.from(shares)))];
  }); }"""


@pytest.mark.site
def test_nothing_is_loaded_before_the_button_is_pressed(visit):
    loaded = visit.page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert any("live/live.js" in url for url in loaded)
    assert not [url for url in [*loaded, *visit.asked] if "weights" in url]
    visit.page.locator(".live-start").scroll_into_view_if_needed()
    assert visit.page.locator(".live-still").is_visible()
    assert visit.page.evaluate("window.LIVE_WEIGHTS === undefined")


@pytest.mark.site
def test_the_base_is_the_one_that_the_chapter_adapts(stored):
    base = pretrained_adder(progress=False)
    for (name, parameter), (stored_name, size) in zip(
        base.named_parameters(), stored["parameters"], strict=True
    ):
        assert (name, parameter.numel()) == (stored_name, size)
    numbers = torch.cat([p.detach().half().double().flatten() for p in base.parameters()])
    assert torch.equal(unpack(stored["base"]), numbers)


@pytest.mark.site
@pytest.mark.parametrize("strength", [0, 0.5, 1, 2])
@pytest.mark.parametrize("rank", [None, "1", "2", "4", "8"])
def test_scores_and_attention_are_those_of_pytorch(page, stored, rank, strength):
    x, model = some_pictures(), model_of(stored, rank)
    if rank is not None:
        set_strength(model, strength)
    with torch.no_grad():
        scores = model(x)
        looks = model.attention_maps(x)[..., 0, :].transpose(0, 1)  # (N, layers, heads, tokens)
    found = page.evaluate(COMPUTE, [x.flatten(1).tolist(), rank, strength])
    ours = torch.tensor([one[0] for one in found], dtype=torch.float64)
    our_looks = torch.tensor([one[1] for one in found], dtype=torch.float64)
    assert (ours - scores).abs().max() <= 1e-5
    assert (our_looks - looks).abs().max() <= 1e-5


@pytest.mark.site
def test_the_shares_that_the_page_names_are_right(stored):
    hand = data.pairs(data.digits().validation, stored["pictures"]["written"], seed=1001)
    for rank, strength in ((None, 0), ("1", 0.5), ("8", 2)):
        model = model_of(stored, rank)
        said = stored["right"]
        if rank is not None:
            set_strength(model, strength)
            said = stored["adapters"][rank]["right"][round(10 * strength)]
        with torch.no_grad():
            right = (model(hand.x.double()).argmax(1) == hand.y).double().mean().item()
        assert right == pytest.approx(said["written"], abs=2.5 / len(hand))  # ties of rounding


@pytest.mark.site
def test_each_adapter_is_the_first_draw_of_the_chapters_run(stored):
    profile = PROFILES["cpu"]
    rows = read_recording(ROOT / "build" / "runs" / "rank.cpu.json").rows
    hand = data.pairs(data.digits().test, profile.sums.test, seed=1002)
    assert len(stored["adapters"]) == 4
    for rank, adapter in stored["adapters"].items():
        first = ("final", f"LoRA r={rank}", profile.labels, profile.tuning.tested[0])
        (row,) = (one for one in rows if (one.stage, one.arm, one.labels, one.seed) == first)
        assert adapter["lr"] == row.lr
        with torch.no_grad():
            right = model_of(stored, rank)(hand.x.double()).argmax(1) == hand.y
        # It was trained by itself, the run's many at once: what is rounded otherwise adds up.
        assert right.double().mean().item() == pytest.approx(row.accuracy, abs=0.02)


@pytest.mark.site
def test_what_the_chapter_says_about_the_strength(stored):
    base = stored["right"]
    assert base["written"] < 0.65, "the base misreads many of the pairs"
    for adapter in stored["adapters"].values():
        nothing, half, full, twice = (adapter["right"][at] for at in (0, 5, 10, 20))
        assert nothing == base
        assert half["written"] - base["written"] > (full["written"] - base["written"]) / 2
        assert base["printed"] - half["printed"] < (base["printed"] - full["printed"]) / 2
        assert twice["written"] < full["written"]


# ---------------------------------------------------------------- drawing


def with_a_pen(digit: torch.Tensor, pen: float = 1.6) -> list[list[list[int]]]:
    """Strokes that lay the ink of a digit, (8, 8), on paper again, somewhere and in some size.

    The digit becomes a bitmap of 32 × 32 dots whose blocks hold as much ink as it says. The pen
    goes over all places where its tip stays in the ink, and over the middle of thinner strokes.
    """
    field = F.interpolate(digit[None, None], (32, 32), mode="bicubic", align_corners=False)[0]
    blocks = field.reshape(8, 4, 8, 4).permute(0, 2, 1, 3).flatten(2)  # (8, 8, 16)
    place = blocks.argsort(dim=2, descending=True).argsort(dim=2)
    bits = (place < (16 * digit).round()[..., None]).reshape(8, 8, 4, 4)
    bits = bits.permute(0, 2, 1, 3).reshape(32, 32)
    inside = torch.tensor(distance_transform_edt(np.pad(bits.numpy(), 1))[1:-1, 1:-1]) >= pen
    dots = {(y, x) for y, x in (inside | data._thinned(bits[None])[0]).nonzero().tolist()}
    strokes = [[(y, x), (y, x)] for y, x in dots]
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        strokes += [[(y, x), (y + dy, x + dx)] for y, x in dots if (y + dy, x + dx) in dots]
    return [[[40 + 3 * x, 15 + 3 * y] for y, x in stroke] for stroke in strokes]


READ = """([strokes, pictures]) => {
  const model = LiveTransformer.read(window.LIVE_WEIGHTS);
  const weights = LiveTransformer.withAdapter(model.base, model.adapters[8], 1);
  const read = picture => {
    const { scores } = LiveTransformer.forward(weights, model.config, picture);
    return scores.indexOf(Math.max(...scores)); };
  return pictures.map((picture, at) => {
    const halves = strokes[at].map(one => LiveDrawing.toCells(one, 1.6));
    const drawn = picture.map((_, k) =>
      halves[k % 16 < 8 ? 0 : 1][Math.floor(k / 16) * 8 + k % 8]);
    return [read(picture), read(drawn)]; }); }"""


@pytest.mark.site
def test_digits_that_are_drawn_again_are_read_as_before(page):
    pairs = data.pairs(data.digits().test, 100, seed=1002)
    strokes = [[with_a_pen(x[0, :, :8]), with_a_pen(x[0, :, 8:])] for x in pairs.x]
    read = page.evaluate(READ, [strokes, pairs.x.flatten(1).tolist()])
    assert np.mean([direct == drawn for direct, drawn in read]) >= 0.85


@pytest.mark.site
def test_a_drawing_fills_the_box_wherever_it_stands(page):
    cells = page.evaluate(
        """[[0, 0, 1], [0.4, 0.3, 0.1]].map(([left, top, size]) => Array.from(LiveDrawing.toCells(
        [[[0, 0], [0.5, 0], [0.2, 1]].map(([x, y]) => [left + size * x, top + size * y])])))"""
    )
    assert np.allclose(cells[0], cells[1], atol=1 / 16 + 1e-9)
    grid = np.reshape(cells[0], (8, 8))
    assert grid[0].sum() > 1
    assert grid[7].sum() > 0.3
    assert np.allclose(16 * grid, np.round(16 * grid)), "sixteenths, as in the data"


# ---------------------------------------------------------------- what the reader does


def says(page) -> str:
    return page.locator(".live-says").inner_text()


@pytest.mark.site
def test_rank_and_strength_change_what_is_read(page):
    page.locator("[data-sample='0']").click()
    left, right = page.evaluate("LIVE_WEIGHTS.samples[0].digits")
    assert says(page).startswith(f"The model reads {left} + {right} as ")
    assert page.locator(".live-status").inner_text() == says(page)
    page.locator("[name=live-rank][value=none]").check()
    alone = says(page)
    assert alone.startswith(f"The base alone reads {left} + {right} as ")
    assert page.locator(".live-strength input").is_disabled()
    page.locator("[name=live-rank][value='4']").check()
    adapted = says(page)
    page.locator(".live-strength input").fill("0")
    assert says(page).split(" as ")[1].split(",")[0] == alone.split(" as ")[1].rstrip(".")
    page.locator(".live-strength input").fill("1")
    assert says(page) == adapted


@pytest.mark.site
def test_strokes_replace_one_half(page):
    page.locator("[data-sample='1']").click()
    before = page.evaluate("document.querySelector('.live').live.picture()")
    box = page.locator(".live-pad").bounding_box()
    for at, (x, y) in enumerate([(0.15, 0.2), (0.35, 0.2), (0.2, 0.8)]):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if at == 0:
            page.mouse.down()
    page.mouse.up()
    after = page.evaluate("document.querySelector('.live').live.picture()")
    before, after = np.reshape(before, (8, 16)), np.reshape(after, (8, 16))
    assert np.array_equal(before[:, 8:], after[:, 8:])
    assert not np.array_equal(before[:, :8], after[:, :8])
    assert says(page).startswith("The model reads the sum as ")
    page.locator("[data-clear='0']").click()
    page.locator("[data-clear='1']").click()
    assert says(page) == "The picture is empty: draw two digits."


@pytest.mark.site
def test_the_numbers_can_be_painted_with_keys(page):
    page.locator("[data-clear='0']").click()
    page.locator(".live-cells").focus()
    row, column = page.evaluate("document.querySelector('.live').live.cursor")
    for key in ("ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
    picture = np.reshape(page.evaluate("document.querySelector('.live').live.picture()"), (8, 16))
    assert picture[(row + 1) % 8, (column + 1) % 16] == 1
    said = page.locator(".live-status").inner_text()
    assert said.startswith(f"Row {(row + 1) % 8 + 1}, column {(column + 1) % 16 + 1}, ink 1.0.")
    assert said.endswith(says(page))


@pytest.mark.site
def test_a_phone_shows_the_answer_under_the_drawing(page):
    page.set_viewport_size(PHONE)
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tops = [
            page.locator(f".live-{name}").bounding_box()["y"] for name in ("pad", "says", "cells")
        ]
        assert tops == sorted(tops)
    finally:
        page.set_viewport_size(DESK)


@pytest.mark.site
def test_paper_shows_the_still_picture(page):
    page.emulate_media(media="print")
    try:
        assert page.locator(".live-still").is_visible()
        assert not page.locator(".live-app").is_visible()
    finally:
        page.emulate_media(media="screen")
    assert page.locator(".live-app").is_visible()
    assert not page.locator(".live-still").is_visible()


@pytest.mark.site
def test_without_scripts_the_still_picture_stands_alone(browser, address):
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{address}/{PAGE}")
        assert page.locator(".live-still img").is_visible()
        assert not page.locator(".live-start").is_visible()
    finally:
        context.close()
