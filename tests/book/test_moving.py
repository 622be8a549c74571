"""The pictures that move: their arithmetic, their hands (keys, finger) and what stands without."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, replace

import moving_data
import numpy as np
import pytest
import torch
from site_help import DESK, PHONE, ROOT, SITE, Visit
from tiny_site import FIGURE, PNG, build, notebook

from minilora.experiments import rates
from minilora.experiments.images.reading import mean_share
from minilora.experiments.recording import Recording, Row, load_recording, read_recording, source_of
from minilora.experiments.recording import write_recording as write
from minilora.experiments.summaries import paired, paired_by_sheet
from minilora.lab.decoder import DecoderConfig
from minilora.lab.predicting import BLOCK_LINEARS, LORA, QLORA, Method, Step
from minilora.quantize import NF4_LEVELS, nearest_levels, normal_float_levels, round_to_levels

# --- The extension, on tiny projects ----------------------------------------------------------

STATIC = f"html_static_path = [{str(ROOT / 'book' / '_static')!r}]\n"
TOC = "# Title\n\n```{toctree}\nmoves\nprinted\n```\n"


def built(folder, page) -> tuple[str, str, str]:
    """Warnings, and the HTML of a page that moves and of one that does not."""
    pages = {"index.md": TOC, "printed.md": "# Printed\n", **page}
    warnings = build(folder, pages, ("figures", "moving"), STATIC)
    return warnings, *((folder / "out" / f"{n}.html").read_text() for n in ("moves", "printed"))


def test_a_cell_that_asks_gets_a_place_after_its_figure_and_its_page_the_scripts(tmp_path):
    page = notebook(PNG, mystnb=FIGURE, book={"moving": "memory"})
    warnings, moves, printed = built(tmp_path, {"moves.ipynb": page})
    assert warnings == ""
    place = '<div class="moving" data-moving="memory" data-needs hidden></div>'
    assert moves.index("<figure") < moves.index("</figure>") < moves.index(place)
    scripts = re.findall(r'<script defer="defer" src="_static/moving/([\w.]+)\?', moves)
    assert scripts == ["moving.js", "memory.data.js", "memory.js"]
    assert "_static/moving" not in printed
    data = (tmp_path / "out/_static/moving/memory.data.js").read_text()
    numbers = json.loads(data.removeprefix('Moving.data["memory"] = ').removesuffix(";\n"))
    assert numbers["models"][0]["parameters"] == DecoderConfig().parameters


def test_a_directive_s_words_stand_where_no_script_runs(tmp_path):
    text = '# Moves\n\n:::{moving} memory\n:start: {"r": 4}\n\nThe printed words.\n:::\n'
    warnings, moves, _ = built(tmp_path, {"moves.md": text})
    assert warnings == ""
    place = 'data-moving="memory" data-needs data-start="{&quot;r&quot;: 4}" hidden'
    printed, live = moves.index("The printed words."), moves.index(place)
    assert moves.index('class="moving-printed') < printed < live


def test_a_picture_that_is_not_there_is_named(tmp_path):
    page = notebook(PNG, mystnb=FIGURE, book={"moving": "memmory"})
    warnings, *_ = built(tmp_path, {"moves.ipynb": page})
    assert "moves: there is no moving picture 'memmory'" in warnings


def test_without_numbers_the_page_is_printed_and_a_whole_build_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_RUNS", str(tmp_path / "no runs"))
    page = {"moves.ipynb": notebook(PNG, mystnb=FIGURE, book={"moving": "rank"})}
    for only in (None, "notebooks/08_lora_transformer"):
        folder = tmp_path / str(bool(only))
        folder.mkdir()
        if only:
            monkeypatch.setenv("BOOK_ONLY_CHAPTER", only)
        warnings, moves, _ = built(folder, page)
        assert ("moves: the picture 'rank' stays as printed: no rank.cpu.json" in warnings) == (
            only is None
        )
        assert "<figure" in moves and "rank.data.js" not in moves


# --- Which run a page shows -------------------------------------------------------------------


VERSIONS = {"python": "3", "torch": "2", "numpy": "2"}


def recording(**changes) -> Recording:
    rows = [Row("final", "LoRA r=1", "lora", 500, seed, 1, accuracy=0.8) for seed in (0, 1)]
    made = Recording(
        "rank", "cpu", {}, rows, source_of("rank"), "a CPU", VERSIONS, "2026-01-01T00:00:00",
        None,
        12.4, None,
    )  # fmt: skip
    return replace(made, **changes)


def test_only_the_run_that_the_page_shows_is_taken(tmp_path, monkeypatch):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    monkeypatch.setenv("MINILORA_RUNS", str(runs))
    page = moving_data.Page("chapter", "2 results in 12 s, profile cpu", kept)
    with pytest.raises(moving_data.Missing, match=r"no rank\.cpu\.json .* delete the folder"):
        page.run("rank")
    write(recording(), runs)
    assert page.run("rank").seconds == 12.4
    # Executed anew elsewhere: another run lies there, and the page still shows the old one.
    write(recording(seconds=13.4), runs)
    assert page.run("rank").seconds == 12.4
    with pytest.raises(moving_data.Missing):
        moving_data.Page("chapter", "2 results in 14 s", kept).run("rank")
    write(recording(source="0" * 64), runs)
    with pytest.raises(moving_data.Missing):
        moving_data.Page("chapter", "2 results in 12 s", tmp_path / "other").run("rank")


def test_a_picture_gets_what_a_cell_of_the_page_has_kept(tmp_path):
    kept = {
        "data": {"application/papermill.record/text/plain": repr(json.dumps({"it's": [1, 2.5]}))},
        "metadata": {"scrapbook": {"name": "numbers"}},
        "output_type": "display_data",
    }
    page = moving_data.Page("chapter", "", tmp_path, {"cells": [{"outputs": [kept]}]})
    assert page.glued("numbers") == {"it's": [1, 2.5]}
    with pytest.raises(moving_data.Missing, match="no executed cell of the page has kept 'other'"):
        page.glued("other")
    with pytest.raises(moving_data.Missing):
        moving_data.Page("chapter", "", tmp_path).glued("numbers")


# --- The built site ---------------------------------------------------------------------------

PLACE = re.compile(r'class="moving" data-moving="(\w+)"')
#: {picture: the page that shows it}; of two pages, the chapter.
SHOWN = {
    name: path.relative_to(SITE).as_posix()
    for folder in ("book", "notebooks")
    for path in sorted((SITE / folder).glob("*.html"), reverse=True)
    for name in PLACE.findall(path.read_text(encoding="utf-8"))
} or {"memory": "notebooks/11_memory_time.html"}  # then the fixture `site` says what is missing
every = pytest.mark.parametrize("name", sorted(SHOWN))
LIVE = ".moving-live"


class Sight(Visit):
    """The page of a picture, opened as some reader has it, and the picture."""

    def __init__(self, browser, address: str, name: str, phone: bool = False, **options):
        self.address = address
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(viewport=PHONE if phone else DESK, **options)
        self.context.route("**/*", self._only_local)
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}/{SHOWN.get(name, name)}", wait_until="load")
        self.live = self.page.locator(f'[data-for="{name}"]' if name in SHOWN else ".moving-live")


def says(live) -> str:
    return live.locator(".moving-says").inner_text()


@pytest.mark.site
def test_every_picture_is_shown_somewhere(site):
    static = {path.stem for path in (ROOT / "book/_static/moving").glob("*.js")} - {"moving"}
    assert static == set(SHOWN)


@pytest.mark.site
@every
def test_a_picture_takes_the_printed_one_s_place_and_gives_it_back(browser, address, name):
    visit = Sight(browser, address, name)
    with visit:
        live = visit.live
        assert live.locator("svg").is_visible() and len(says(live)) > 30
        printed = live.locator("xpath=preceding-sibling::*[.//img][1]")
        assert not printed.is_visible()
        swap = live.locator(".moving-row button").last
        swap.click()
        assert printed.is_visible() and not live.locator("svg").is_visible()
        swap.click()
        assert live.locator("svg").is_visible() and not printed.is_visible()
        assert visit.errors == [] and visit.refused == []


@pytest.mark.site
@every
def test_in_print_and_without_script_the_printed_figure_stands_alone(browser, address, name):
    visit = Sight(browser, address, name)
    with visit:
        live = visit.live
        visit.page.emulate_media(media="print")
        assert not live.is_visible()
        assert visit.page.locator(".moving-put-away").first.is_visible()
    visit = Sight(browser, address, name, java_script_enabled=False)
    with visit:
        live = visit.live
        assert live.count() == 0
        place = visit.page.locator(f'.moving[data-moving="{name}"]')
        assert not place.is_visible()
        before = place.locator("xpath=preceding-sibling::*[1]")
        assert before.locator("figure img, p").first.is_visible()


@pytest.mark.site
@every
def test_by_keys_alone_every_control_is_reached_and_changes_what_is_seen(browser, address, name):
    visit = Sight(browser, address, name)
    with visit:
        live = visit.live
        keyboard, seen, changed, silent = visit.page.keyboard, [], set(), []
        first = live.locator(".moving-frame [tabindex='0'], .moving-controls :is(input, select)")
        first.first.focus()
        while visit.page.evaluate("document.activeElement.closest('.moving-live') !== null"):
            here = visit.page.evaluate(
                "[document.activeElement.type ?? document.activeElement.tagName,"
                " document.activeElement.labels?.[0]?.textContent"
                " ?? document.activeElement.getAttribute('aria-label')"
                " ?? document.activeElement.textContent]"
            )
            seen.append(here[1])
            # From where it starts: what others have set may leave nothing for this one to change.
            live.locator(".moving-row button").first.evaluate("button => button.click()")
            before, drawn = says(live), live.locator("svg").inner_html()
            if here[0] in ("range", "number"):
                keyboard.press("ArrowUp")
            elif here[0] == "select-one":
                keyboard.press("ArrowDown")
            elif here[0] == "checkbox":
                keyboard.press("Space")
            elif here[0] == "circle":
                keyboard.press("ArrowRight")
            if says(live) != before:
                changed.add(here[0])
            elif (
                here[0] in ("range", "number", "select-one", "checkbox", "circle")
                and live.locator("svg").inner_html() == drawn
            ):
                silent.append(here[1])
            keyboard.press("Tab")
            assert len(seen) < 60
        assert {"Start again", "Show the printed figure"} <= set(seen)
        assert all(seen)  # each has a name
        # What an arm is compared with stays in the picture, shown or not.
        assert changed and silent == (["full fine-tuning"] if name == "rank" else [])
        shown = live.locator(":is(input, select):visible").count()
        reached = sum(one not in ("Start again", "Show the printed figure") for one in seen)
        assert reached >= shown
        assert visit.errors == []


@pytest.mark.site
@every
def test_controls_have_names_and_readings_and_the_picture_has_words(browser, address, name):
    visit = Sight(browser, address, name)
    with visit:
        live = visit.live
        facts = live.evaluate(
            """box => ({
              unnamed: [...box.querySelectorAll("input, select")].filter(
                one => !one.labels?.[0]?.textContent.trim()).length,
              unread: [...box.querySelectorAll("input[type=range]")].filter(
                one => !one.getAttribute("aria-valuetext")).length,
              polite: box.querySelector(".moving-says").getAttribute("aria-live"),
              name: box.querySelector("svg").getAttribute("aria-label"),
              told: box.querySelector("svg").getAttribute("aria-describedby")
                === box.querySelector(".moving-says").id,
              twice: [...document.querySelectorAll("[id^=moving-]")].length
                - new Set([...document.querySelectorAll("[id^=moving-]")].map(e => e.id)).size,
            })"""
        )
        assert facts["unnamed"] == facts["unread"] == facts["twice"] == 0
        assert facts["polite"] == "polite" and facts["name"] and facts["told"]


#: Contrast of every word in the picture with the ground it stands on.
CONTRAST = """box => {
  const light = rgb => {
    const [r, g, b] = rgb.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(
      v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(box).backgroundColor);
  return [...box.querySelectorAll("svg text, p, label, legend, output, button")]
    .filter(one => one.textContent.trim() && one.getClientRects().length).map(one => {
      const style = getComputedStyle(one);
      const ink = light(one.tagName === "text" ? style.fill : style.color);
      return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    });
}"""


@pytest.mark.site
@every
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_in_both_themes(browser, address, name, theme):
    visit = Sight(browser, address, name, color_scheme=theme)
    with visit:
        live = visit.live
        visit.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        ratios = live.evaluate(CONTRAST)
        assert len(ratios) > 5 and min(ratios) >= 4.5


@pytest.mark.site
@every
def test_on_a_phone_it_fits_and_a_finger_moves_it(browser, address, name):
    visit = Sight(browser, address, name, phone=True, has_touch=True)
    with visit:
        live = visit.live
        live.scroll_into_view_if_needed()
        wide, screen = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= screen
        small = live.evaluate(
            "box => [...box.querySelectorAll('svg text')].map("
            "t => t.getBoundingClientRect().height).reduce((a, b) => Math.min(a, b))"
        )
        assert small >= 13  # a line of 13 px
        out = live.evaluate(
            "box => { const at = box.getBoundingClientRect();"
            " return [...box.querySelectorAll('svg text')].filter(t => {"
            "  const r = t.getBoundingClientRect();"
            "  return r.left < at.left || r.right > at.right;}).map(t => t.textContent) }"
        )
        assert out == []
        before = says(live)
        if live.locator("[data-key]").count():
            mark = live.locator("[data-key][aria-pressed=false]").first
            mark.tap()
        elif live.locator("svg.moving-drags").count():
            box = live.locator("svg").bounding_box()
            visit.page.touchscreen.tap(
                box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
            )
            if says(live) == before:  # the tap hit where it was
                visit.page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + 90)
        else:
            live.locator("input[type=checkbox]:visible").first.tap()
        assert says(live) != before
        assert visit.errors == []


SHIFT = """() => new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => {
    for (const one of list.getEntries()) if (!one.hadRecentInput) sum += one.value;
  }).observe({type: "layout-shift", buffered: true});
  requestAnimationFrame(() => requestAnimationFrame(() => done(sum)));
})"""


@pytest.mark.site
@every
def test_to_take_the_printed_one_s_place_moves_nothing_that_is_seen(browser, address, name):
    visit = Sight(browser, address, name)
    with visit:
        live = visit.live
        anchor = live.evaluate("box => box.closest('figure')?.id")
        assert anchor, "it stands in a figure that an address can name"
        # With the picture in sight from the start, and nothing but it drawn late.
        visit.context.route(re.compile("mathjax"), lambda route: route.abort())
        page = visit.context.new_page()
        page.goto(f"{address}/{SHOWN[name]}#{anchor}", wait_until="load")
        assert page.evaluate(SHIFT) < 0.1


# --- Their arithmetic -------------------------------------------------------------------------

METHODS = [
    Method(),
    Method(masters=True),
    Method(BLOCK_LINEARS),
    Method(BLOCK_LINEARS, r=1),
    Method(BLOCK_LINEARS, r=64, textbook=True),
    Method(BLOCK_LINEARS, quantized=True),
    Method(BLOCK_LINEARS, r=16, quantized=True, textbook=True),
    Method(("q_proj", "v_proj"), r=16),
    Method(("q_proj", "v_proj"), r=4, trains_a=False),
    Method(("o_proj",), r=3),
    Method(("up_proj", "down_proj"), r=2, trains_a=False, textbook=True),
    Method(("down_proj",), quantized=True),
    Method(()),
]
SIZES = [
    (DecoderConfig(), 1, 128),
    (DecoderConfig(64, 1, 2, 17, 8), 3, 8),
    (DecoderConfig(4096, 32, 32, 32_000, 2048), 1, 2048),
    (DecoderConfig(8192, 80, 64, 128_000, 8192), 4, 8192),
]


def settings() -> list[Step]:
    grid = itertools.product(
        SIZES, METHODS, (torch.float32, torch.bfloat16), (False, True), ("cpu", "cuda")
    )
    return [
        Step(model, method, batch, tokens, dtype, checkpointing, device)
        for (model, batch, tokens), method, dtype, checkpointing, device in grid
    ]


@pytest.mark.site
def test_the_memory_of_a_step_is_that_of_the_package_to_the_byte(browser, address):
    steps = settings()
    asked = [
        {
            **asdict(step.model),
            **asdict(step.method),
            "trainsA": step.method.trains_a,
            "batch": step.batch,
            "tokens": step.tokens,
            "half": step.dtype == torch.bfloat16,
            "checkpointing": step.checkpointing,
            "cuda": step.device == "cuda",
        }
        for step in steps
    ]
    visit = Sight(browser, address, "memory")
    with visit:
        found = visit.page.evaluate("all => all.map(Moving.pictures.memory.compute)", asked)
    assert len(steps) > 400
    for step, numbers in zip(steps, found, strict=True):
        expected = asdict(step.bytes()) | {"peak": step.peak()}
        expected["parameters"] = step.model.parameters
        assert {name: numbers[name] for name in expected} == expected, step


@pytest.mark.site
def test_the_calculator_begins_with_the_bar_of_the_figure(browser, address):
    """6.7 billion parameters, LoRA of rank 16 on all six, as in the cell of the printed one."""
    seven = DecoderConfig(4096, 32, 32, 32_000, 2048)
    step = Step(seven, Method(BLOCK_LINEARS, r=16), 1, 2048, torch.bfloat16, device="cuda")
    visit = Sight(browser, address, "memory")
    with visit:
        live = visit.live
        assert f"The peak is {step.peak() / 2**30:.1f} GiB" in says(live)
        live.get_by_label("gradient checkpointing").check()
        less = replace(step, checkpointing=True).peak() / 2**30
        assert f"The peak is {less:.1f} GiB" in says(live)
        live.get_by_label("Method").select_option("full, with float32 master copies")
        live.get_by_label("gradient checkpointing").uncheck()
        most = replace(step, method=Method(masters=True)).peak() / 2**30
        assert f"The peak is {most:.0f} GiB: no card of 80 GiB has room" in says(live)


@pytest.mark.site
def test_on_its_own_page_the_calculator_begins_with_the_step_that_is_counted_there(
    browser, address
):
    cells = json.loads((ROOT / "book" / "memory.ipynb").read_text(encoding="utf-8"))["cells"]
    code = next("".join(c["source"]) for c in cells if c["id"] == "no-room9")
    there = {"DecoderConfig": DecoderConfig, "LORA": LORA, "Step": Step, "torch": torch}
    there["replace"] = replace
    exec(code, there)
    visit = Sight(browser, address, "book/memory.html")
    with visit:
        live = visit.live
        assert f"The peak is {there['peak'](there['now']) / 2**30:.1f} GiB" in says(live)
        live.get_by_label("Method").select_option("QLoRA (base in NF4)")
        less = replace(there["now"], method=replace(QLORA, r=16))
        assert f"The peak is {there['peak'](less) / 2**30:.1f} GiB" in says(live)
        assert visit.errors == []


def run(*name: str) -> Recording:
    """The run that chapter 8 or 9 showed."""
    return read_recording(ROOT / "build" / "runs" / f"{'-'.join(name)}.cpu.json")


@pytest.mark.site
def test_differences_of_arms_are_those_of_the_package(browser, address):
    result = run("rank")
    visit = Sight(browser, address, "rank")
    with visit:
        live = visit.live
        arms = visit.page.evaluate("Moving.data.rank.sets[0].arms")
        trained = [one["arm"] for one in arms if one["parameters"] and one["r"]]
        trained.append("full fine-tuning")
        assert len(trained) > 4
        pairs = list(itertools.permutations(trained, 2))
        found = visit.page.evaluate(
            """pairs => pairs.map(pair => {
              const [a, b] = pair.map(name => Moving.data.rank.sets[0].arms.find(
                one => one.arm === name)), {paired, bySheet} = Moving.pictures.rank.compute;
              return [paired(a, b, "accuracy"), paired(a, b, "log_loss"), bySheet(a, b)];
            })""",
            pairs,
        )
        for (a, b), numbers in zip(pairs, found, strict=True):
            expected = (
                paired(result, a, b),
                paired(result, a, b, "log_loss"),
                paired_by_sheet(result, a, b),
            )
            for one, other in zip(expected, numbers, strict=True):
                got = [other[key] for key in ("mean", "low", "high")]
                assert got == pytest.approx([one.mean, one.low, one.high], abs=1e-12)
                assert one.seeds == other["n"]
        live.get_by_label("Compare").select_option("LoRA r=1")
        one = paired(result, "LoRA r=1", "full fine-tuning")
        low, high = (f"{100 * v:+.1f}".replace("-", "−") for v in (one.low, one.high))
        assert f"(95% interval {low} to {high})" in says(live)


@pytest.mark.site
def test_losses_at_a_rate_are_those_of_the_run(browser, address):
    rows = [*run("rates", "adam").rows, *run("rates", "scaling").rows]
    profile = rates.PROFILES["cpu"]
    visit = Sight(browser, address, "rates")
    with visit:
        live = visit.live
        panels = visit.page.evaluate(
            "Moving.data.rates.panels.map(p => [p.rule, p.arms.map(arm => [arm.arm, arm.best,"
            " arm.tried.map(one => [one.lr, Moving.pictures.rates.compute.at(arm, one.lr).loss])"
            "])])"
        )
        assert len(panels) == 5 and {rule for rule, _ in panels} == set(rates.RULES)
        for _, arms in panels:
            for arm, best, losses in arms:
                assert best == rates.best_rate(rows, arm)
                for (lr, loss), (rate, runs) in zip(
                    losses, rates.by_rate(rows, arm).items(), strict=True
                ):
                    assert lr == rate and loss == pytest.approx(rates.mean_loss(runs), abs=1e-12)
        for rule in rates.RULES:
            live.get_by_label("Optimizer and scale").select_option(f"AdamW, {rule}")
            bests = [
                rates.best_rate(rows, rates.arm_of(profile.alpha, rule, r)) for r in profile.ranks
            ]
            ratio = max(bests) / min(bests)
            assert (f"at most a factor of {ratio:.2g} apart" in says(live)) == (ratio > 1)


@pytest.mark.site
def test_the_ellipse_is_that_of_numpy_s_singular_values(browser, address):
    draws = np.random.default_rng(0)
    all_of_them = [*draws.uniform(-3, 3, (200, 2, 2)), *draws.integers(-1, 2, (100, 2, 2))]
    all_of_them += [np.array([[2.0, 1.0], [-1.0, -2.0]]), np.zeros((2, 2))]
    visit = Sight(browser, address, "ellipse")
    with visit:
        found = visit.page.evaluate(
            "all => all.map(Moving.pictures.ellipse.compute.svd)",
            [W.ravel().tolist() for W in all_of_them],
        )
        for W, parts in zip(all_of_them, found, strict=True):
            u, v = (np.array(parts[name]).T for name in ("u", "v"))  # columns
            assert parts["sigma"] == pytest.approx(np.linalg.svd(W)[1].tolist(), abs=1e-7)
            assert u * parts["sigma"] @ v.T == pytest.approx(W, abs=1e-7)
            for one in (u, v):
                assert one.T @ one == pytest.approx(np.eye(2), abs=1e-12)
        # The page's own matrix: 3 at 45 degrees, 1 at 135.
        expected = r"σ₁ = 3\.00, belongs to the input at 45°.*σ₂ = 1\.00, to that at 135°"
        assert re.search(expected, says(visit.live))
        visit.live.get_by_label("Angle of the input").fill("45")
        assert "At 45° the output has length 3.00" in says(visit.live)
        visit.live.get_by_label("W, row 1, column 1").fill("-3")
        assert f"σ₁ = {np.linalg.svd([[-3, 1], [-1, -2]])[1][0]:.2f}" in says(visit.live)


@pytest.mark.site
def test_a_column_follows_the_finger_that_took_it(browser, address):
    visit = Sight(browser, address, "ellipse")
    with visit:
        live, mouse = visit.live, visit.page.mouse
        live.scroll_into_view_if_needed()
        rings = live.locator("svg path[style*='--moving-head']")
        first, second = (rings.nth(i).bounding_box() for i in (0, 1))
        mouse.move(first["x"] + 7, first["y"] + 7)
        mouse.down()
        # Past the other ring, which stays where it is.
        mouse.move(second["x"] + 7, second["y"] + 40, steps=9)
        mouse.up()
        values = [one.input_value() for one in live.locator("input[type=number]").all()]
        assert values[1::2] == ["1", "-2"] and float(values[2]) < -2


@pytest.mark.site
def test_descent_makes_the_steps_that_numpy_makes(browser, address):
    draws = np.random.default_rng(1)
    visit = Sight(browser, address, "descent")
    with visit:
        for out, into, r, rate, steps in (
            (48, 48, 3, 0.1, 100),
            (48, 48, 6, 0.05, 200),
            (5, 7, 2, 0.02, 60),
            (6, 4, 1, 0.3, 30),
        ):
            D, B = 0.3 * draws.normal(size=(out, into)), 0.1 * draws.normal(size=(out, r))
            A = draws.uniform(-1, 1, (r, into)) / into**0.5
            found = visit.page.evaluate(
                "([A, B, D, rate, steps]) =>"
                " Moving.pictures.descent.compute.descend(A, B, D, rate, steps)",
                [A.tolist(), B.tolist(), D.tolist(), rate, steps],
            )
            losses = []
            for step in range(steps + 1):
                G = 2 * (B @ A - D)
                losses.append((G**2).sum() / 4)
                if step < steps:
                    A, B = A - rate * B.T @ G, B - rate * G @ A.T
            assert found["losses"] == pytest.approx(losses, rel=1e-9)
            assert np.array(found["A"]) == pytest.approx(A, abs=1e-9)
            assert np.array(found["B"]) == pytest.approx(B, abs=1e-9)


@pytest.mark.site
def test_the_walk_wants_the_chapter_s_change_and_says_where_it_ends(browser, address):
    cells = json.loads((ROOT / "notebooks/04_learning_low_rank.ipynb").read_text("utf-8"))["cells"]
    code = next("".join(c["source"]) for c in cells if c["id"] == "e73beceb")
    there = {"torch": torch}
    exec(code.split("\nx = ")[0], there)
    wanted = torch.linalg.svdvals(there["D"])
    visit = Sight(browser, address, "descent")
    with visit:
        live, page = visit.live, visit.page
        D = torch.tensor(page.evaluate("Moving.pictures.descent.compute.D"))
        assert torch.allclose(torch.linalg.svdvals(D), wanted, atol=1e-6)
        factors = page.evaluate(
            "Moving.pictures.descent.compute.start({rank: 4, a: 1, b: 0, seed: 3})"
        )
        A, B = np.array(factors["A"]), np.array(factors["B"])
        assert not B.any() and 0.9 < abs(A).max() * 48**0.5 <= 1 and abs(A.mean()) < 0.03
        for rank in (1, 2, 4):
            live.get_by_label("Rank r").fill(str(rank))
            floor = wanted[rank:].square().sum().item()
            assert f"the floor of rank {rank}, {floor:.2f}" in says(live)
            assert "training has reached the floor" in says(live)
        live.get_by_label("Learning rate").fill("9")  # the tenth, 0.5
        assert "Choose a smaller learning rate" in says(live)
        live.get_by_label("A begins").select_option("at zero")
        assert "nothing moves" in says(live)
        live.get_by_label("Learning rate").fill("3")
        live.get_by_label("Size of B").fill("3")
        assert "training has reached the floor" in says(live)


@pytest.mark.site
def test_weights_go_to_the_levels_of_the_package(browser, address):
    draws = torch.Generator().manual_seed(0)
    visit = Sight(browser, address, "levels")
    with visit:
        live, page = visit.live, visit.page
        formats = page.evaluate("Moving.data.levels.formats")
        assert [one["bits"] for one in formats] == [4, 3, 2]
        assert formats[0]["levels"] == NF4_LEVELS.tolist()
        for number, one in enumerate(formats):
            levels = torch.tensor(one["levels"])
            assert torch.allclose(levels, normal_float_levels(one["bits"]), atol=1e-6)
            for block in (2, 8, 64, 512):
                values = torch.randn(block, generator=draws)
                found = page.evaluate(
                    "([values, i]) => Moving.pictures.levels.compute.round("
                    "values, Moving.data.levels.formats[i].levels)",
                    [values.tolist(), number],
                )
                codes, absmax = nearest_levels(values, levels, block)
                assert found["codes"] == codes.tolist()
                assert found["absmax"] == pytest.approx(absmax.item(), abs=1e-9)
                back = round_to_levels(values, levels, block).tolist()
                assert found["back"] == pytest.approx(back, abs=1e-6)
        values = page.evaluate("Moving.pictures.levels.compute.draws(3, 20000)")
        assert abs(np.mean(values)) < 0.03 and abs(np.var(values) - 1) < 0.03
        # A weight beyond all others is the absmax, and comes back as it is.
        live.get_by_label("Weights in the block").fill("0")
        live.get_by_label("The weight").fill("4")
        assert "its magnitude is the absmax" in says(live) and "an error of 0.00" in says(live)
        live.get_by_label("The weight").fill("0")
        assert "The nearest of the 16 levels is 0.000, code 7" in says(live)
        before = says(live)
        live.get_by_role("button", name="Draw another block").click()
        assert says(live) != before


@pytest.mark.site
def test_content_and_style_at_a_strength_are_those_of_the_recording(browser, address):
    result = load_recording("images", "laptop")
    strengths = result.settings["strengths"]
    visit = Sight(browser, address, "strength")
    with visit:
        live, page = visit.live, visit.page
        for number, style in enumerate(result.settings["strong_styles"]):
            found = page.evaluate(
                "([i, all]) => all.map(s => Moving.pictures.strength.compute.at("
                "Moving.data.strength.styles[i], s))",
                [number, strengths],
            )
            for strength, one in zip(strengths, found, strict=True):
                arm = f"{style}, strength {strength:g}"
                assert one["measured"]
                assert one["content"] == pytest.approx(mean_share(result, arm), abs=1e-12)
                assert one["style"] == pytest.approx(mean_share(result, arm, "style"), abs=1e-12)
        live.get_by_label("Style that was taught").select_option("slanted")
        slider = live.get_by_label("Strength of the adapter")
        slider.fill("1.5")
        share = 100 * mean_share(result, "slanted, strength 1.5", "style")
        assert f"the style in {share:.4g}% (" in says(live)
        assert "not measured" not in says(live)
        slider.fill("1.75")
        both = [mean_share(result, f"slanted, strength {s}", "style") for s in ("1.5", "2")]
        assert "not measured. On the straight line between the measured 1.5 and 2" in says(live)
        read = float(re.search(r"the style in ([\d.]+)%", says(live))[1])
        assert read == pytest.approx(100 * np.mean(both), abs=0.06)


@pytest.mark.site
def test_intruders_are_those_that_the_page_counts(browser, address, site):
    text = (site / "notebooks" / "06_finetuning_low_rank.html").read_text(encoding="utf-8")
    line = r" {2}(full|rank \d) +(\[.*?\]) turned: (\[.*?\])$"
    printed = [(name, json.loads(a), json.loads(b))
               for name, a, b in re.findall(line, text, flags=re.M)]  # fmt: skip
    visit = Sight(browser, address, "spectra")
    with visit:
        live, page = visit.live, visit.page
        found = page.evaluate(
            """() => {
              const {count} = Moving.pictures.spectra.compute;
              return [0.5, 0.8].flatMap(limit => Moving.data.spectra.cases.map(one => [
                one.name, ...[one.near, one.turned].map(
                  three => three.map(run => count([run], limit)))]));
            }"""
        )
        assert found == [list(one) for one in printed]
        # What the page says of them: five cases, below 0.5 and then below 0.8.
        assert len(printed) == 10 and sum(printed[0][1]) == 0
        for _, near, turned in printed[1:5]:
            assert 0 < sum(near) < 1.2 * sum(turned)
        for _, near, turned in printed[5:]:
            assert sum(near) > sum(turned)
        name, near, turned = found[1]
        live.get_by_label("Trained").select_option(name)
        assert f"it is {sum(near)} of 540" in says(live)
        assert f"(diamonds) {sum(turned)}." in says(live)
        live.get_by_label("Limit").fill("0.95")
        more = int(re.search(r"it is (\d+) of", says(live))[1])
        assert more > sum(near)
        assert visit.errors == []
