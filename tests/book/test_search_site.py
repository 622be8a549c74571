"""The search of the built site: what people type leads to the place that answers."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from playwright.sync_api import Error
from site_help import PAGES, PHONE, Visit

pytestmark = pytest.mark.site

INDEX = "_static/sections-index.js"
SIZES = [(1440, 900), (1280, 720), (1920, 1080), (390, 844)]

# Where each answer stands was decided by reading the book. The first result must be one of these.
CHOOSING, MEMORY, SYMPTOMS = "book/choosing.html#", "book/memory.html#", "book/symptoms.html#"
GLOSSARY, API, NOTATION = (
    "book/glossary.html#term-",
    "book/api/adapting.html#minilora.",
    "book/notation.html#",
)
RANK_STEP = [CHOOSING + "step-6-the-rank"]
RATE = [
    CHOOSING + "step-5-the-learning-rate-where-your-runs-belong",
    "notebooks/09_learning_rate.html#learning-rate-and-initialisation",
]
ALPHA = [CHOOSING + "step-4-one-for-everything", "notebooks/09_learning_rate.html#what-is"]
PLACES = [
    CHOOSING + "step-2-put-adapters-on-all-linear-layers-of-the-blocks",
    "notebooks/10_placement.html#where-to-put-it",
    "notebooks/12_real_transformer.html#where-the-linear-layers-are",
]
NO_ROOM = [MEMORY + "does-not-fit-in-memory"]
MERGING = [
    "notebooks/07_building_minilora.html#merging",
    "notebooks/17_shipping.html#merged-or-beside-the-weights",
    GLOSSARY + "merge",
]
DROPOUT = [
    "notebooks/07_building_minilora.html#dropout-has-its-place",
    GLOSSARY + "dropout",
]
FORGETTING = [
    "notebooks/13_language_model.html#learning-and-forgetting",
    SYMPTOMS + "the-second-task-wipes-out-the-first-catastrophic-forgetting",
    GLOSSARY + "forgetting",
]
FOUR_BITS = [
    "notebooks/15_quantized.html#quantized-bases",
    "notebooks/15_quantized.html#an-adapter-on-four-bits",
]
OVERFITTING = [
    SYMPTOMS + "validation-loss-rises-while-training-loss-falls",
    GLOSSARY + "overfitting",
    "notebooks/08_lora_transformer.html#when-more-rank-does-harm",
]
FOLDER = [
    "notebooks/07_building_minilora.html#a-file-of-its-own",
    "notebooks/17_shipping.html#what-is-in-the-folder",
    API + "save",
]
BATCH = [
    "notebooks/09_learning_rate.html#the-batch-and-the-number-of-steps",
    CHOOSING + "step-3-memory-batch-and-number-of-steps",
]
SUMS = [
    "notebooks/17_shipping.html#two-adapters-in-one",
    SYMPTOMS + "the-average-of-two-adapters-does-nothing-or-the-wrong-thing",
]
ANSWERS = {
    "rank 8 or 16": RANK_STEP,
    "how to choose rank": RANK_STEP,
    "best rank": RANK_STEP,
    "learning rate": RATE,
    "alpha": ALPHA,
    "lora_alpha": [*ALPHA, API + "LoRAConfig"],
    "target_modules": [*PLACES, API + "LoRAConfig"],
    "target modules": PLACES,
    "学習率": [GLOSSARY + "learning-rate"],
    "過学習": [GLOSSARY + "overfitting"],
    "低ランク近似": [GLOSSARY + "low-rank-approximation"],
    "ファインチューニング": [GLOSSARY + "fine-tuning"],
    "学習率はいくつ": RATE[:1],
    "メモリ不足": NO_ROOM,
    "LoRAとは": [GLOSSARY + "low-rank-adaptation"],
    "rank_pattern": [API + "LoRAConfig"],
    "out of memory": NO_ROOM,
    "OOM": NO_ROOM,
    "merge": MERGING,
    "QLoRA": [GLOSSARY + "QLoRA", *FOUR_BITS],
    "dropout": DROPOUT,
    "dropuot": DROPOUT,
    "break-even": [
        GLOSSARY + "break-even-rank",
        "notebooks/01_rank.html#what-it-costs",
        "notebooks/08_lora_transformer.html"
        "#how-many-parameters-and-from-which-rank-on-it-does-not-pay",
    ],
    "NaN loss": [SYMPTOMS + "the-loss-is-nan"],
    "covariance": [
        "notebooks/02_svd.html#the-same-thing-under-other-names",
        GLOSSARY + "covariance-matrix",
    ],
    "Conv1D": [
        "book/api/layers.html#minilora.layers.LoRAHFConv1D",
        "book/api/layers.html#minilora.layers.is_hf_conv1d",
        NOTATION + "reading-other-texts",
    ],
    "weight decay": [
        "notebooks/09_learning_rate.html#towards-zero-or-towards-the-base",
        GLOSSARY + "weight-decay",
    ],
    # More of what people type
    "catastrophic forgetting": FORGETTING,
    "catastrofic forgeting": FORGETTING,
    "4bit": FOUR_BITS,
    "4-bit": FOUR_BITS,
    "量子化": [GLOSSARY + "quantization"],
    "merge and unload": MERGING,
    "merge_and_unload": MERGING,
    "loss not decreasing": [SYMPTOMS + "the-loss-does-not-decrease"],
    "loss is not going down": [SYMPTOMS + "the-loss-does-not-decrease"],
    "gradient checkpointing": [
        "notebooks/11_memory_time.html#checkpointing",
        GLOSSARY + "gradient-checkpointing",
    ],
    "multi gpu": ["notebooks/18_many_gpus.html#more-than-one-gpu"],
    "why is B zero": ["notebooks/09_learning_rate.html#which-factor-begins-at-zero"],
    "save adapter": FOLDER,
    "how do I save the adapter": FOLDER,
    "adapter has no effect": [SYMPTOMS + "the-adapter-has-no-effect-after-loading"],
    "stable diffusion": ["notebooks/14_images.html#from-here-to-stable-diffusion"],
    "combine two adapters": SUMS,
    "which layers should I adapt": PLACES,
    "batch size": BATCH,
    "how much vram for 7b": [
        MEMORY + "does-not-fit-in-memory",
        MEMORY + "seven-billion-parameters-counted",
        "notebooks/11_memory_time.html#what-a-large-model-would-need",
    ],
    "eckart young": ["notebooks/02_svd.html#cutting-the-sum", GLOSSARY + "EckartYoung-theorem"],
    "vllm": ["notebooks/17_shipping.html#what-a-server-expects"],
    "overfiting": OVERFITTING,
    "ランクの選び方": RANK_STEP,
    "lora vs full fine-tuning": [
        SYMPTOMS + "lora-learns-less-than-full-fine-tuning",
        "notebooks/08_lora_transformer.html#rank-against-parameters-and-accuracy",
    ],
    "is it safe to load an adapter": ["notebooks/17_shipping.html#what-a-file-can-do-to-you"],
    "intruder dimensions": [
        "notebooks/13_language_model.html#intruders",
        GLOSSARY + "intruder-dimension",
    ],
    "diverges": [SYMPTOMS + "the-loss-jumps-up-and-stays-high", SYMPTOMS + "the-loss-is-nan"],
    # Whole questions, in both languages
    "which rank should I start with": RANK_STEP,
    "load a folder made by PEFT": FOLDER,
    "memory calculator": [MEMORY + "seven-billion-parameters-counted"],
    "学習率はどう選ぶ": RATE[:1],
    "LoRAとは何か": [GLOSSARY + "low-rank-adaptation"],
    "過学習を防ぐ": OVERFITTING[:1],
    "training is slow": [SYMPTOMS + "training-is-slower-than-full-fine-tuning"],
}


@pytest.fixture(scope="module")
def searching(browser, address):
    """A page with the search loaded, and in it tried(typed): what is found, as the page does it."""
    with Visit(browser, address, "search.html?q=rank") as opened:
        opened.page.wait_for_selector("#search-results ol[data-query=rank] li")
        opened.page.evaluate(
            """async () => { const find = await BookSearch.index(BOOK_SECTIONS, BOOK_SEARCH_WORDS);
            window.tried = (typed, most) => find(typed, most).map(({place, snippet, heading}) =>
                ({to: place.url + '#' + place.anchor, kind: place.kind, trail: place.trail,
                  heading: place.heading, marked: [...heading, ...snippet]
                    .filter(([, mark]) => mark).map(([text]) => text)})); }"""
        )
        yield opened.page


@pytest.fixture
def found(searching):
    """A function that searches and returns the results."""
    return lambda typed, most=10: searching.evaluate(
        "([typed, most]) => tried(typed, most)", [typed, most]
    )


@pytest.mark.parametrize("typed", ANSWERS)
def test_the_first_result_answers(found, typed):
    results = [result["to"] for result in found(typed)]
    assert results, "nothing was found"
    assert results[0] in ANSWERS[typed], results


def test_every_answer_of_this_table_is_in_the_book(site):
    index = _index(site)
    there = {f"{index['pages'][place[0]][0]}#{place[2]}" for place in index["places"]}
    assert {answer for answers in ANSWERS.values() for answer in answers} <= there


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("chapter 9", "notebooks/09_learning_rate.html#learning-rate-and-initialisation"),
        ("Chapter 3 exercises", "notebooks/03_when_low_rank.html#exercises"),
        ("第9章", "notebooks/09_learning_rate.html#learning-rate-and-initialisation"),
    ],
)
def test_a_chapter_is_found_by_its_number(found, typed, first):
    assert found(typed)[0]["to"] == first


def test_a_number_keeps_to_its_chapter(found):
    assert {one["to"].split("#")[0] for one in found("memory chapter 15")} == {
        "notebooks/15_quantized.html"
    }
    assert found("chapter 99 memory"), "there is no such chapter: the words are looked for"
    elsewhere = found("chapter 1 WavLM")
    assert elsewhere, "the chapter says nothing of it: others are shown"


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("overf", OVERFITTING),
        ("quantiz", [*FOUR_BITS, GLOSSARY + "quantization", GLOSSARY + "double-quantization"]),
        ("catastrophic f", FORGETTING),
        ("out of mem", [*NO_ROOM, SYMPTOMS + "out-of-memory-after-some-steps"]),
    ],
)
def test_a_beginning_is_enough(found, typed, first):
    assert found(typed)[0]["to"] in first


def test_nonsense_finds_nothing(found):
    assert found("xqzzjv") == []
    assert found("、。") == []


def test_a_result_says_where_it_stands_and_marks_the_words(found):
    [result] = [hit for hit in found("gradient checkpointing") if "11_memory" in hit["to"]][:1]
    assert result["trail"].startswith("Chapter 11 · Memory and time")
    assert "Checkpointing" in result["marked"]


HELPERS = {
    "BookSearch.stem('merging')": "merg",
    "BookSearch.stem('merged')": "merg",
    "BookSearch.stem('merges')": "merg",
    "BookSearch.stem('losses')": "loss",
    "BookSearch.stem('initialisation') === BookSearch.stem('initialization')": True,
    "BookSearch.stem('lora_alpha')": "lora_alpha",
    "BookSearch.fold('Ｆｒé α ガ')": "fre alpha ガ",
    "BookSearch.words('学習率').map(word => word.term)": ["学習", "習率"],
    "BookSearch.words('lora_alpha').map(word => word.term)": ["lora_alpha", "lora", "alpha"],
    "BookSearch.words('fine-tuning').map(word => word.word)": ["fine", "finetuning", "tuning"],
    "BookSearch.words('2e-4').map(word => word.word)": ["2e-4"],
    "BookSearch.words('LoRA+ and LoRA').map(word => word.word)": ["lora+", "and", "lora"],
    "BookSearch.distance('dropuot', 'dropout', 2)": 1,
    "BookSearch.distance('learnig', 'learning', 2)": 1,
    "BookSearch.distance('rank', 'rate', 1)": 2,
}


@pytest.mark.parametrize("call", HELPERS)
def test_the_pieces_of_the_search(searching, call):
    assert searching.evaluate(call) == HELPERS[call]


# ---------------------------------------------------------------- the index


def _index(site) -> dict:
    text = (site / INDEX).read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.BOOK_SECTIONS=").removesuffix(";\n"))


def test_every_place_of_the_index_is_on_its_page(site):
    class Ids(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.ids = set()
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.ids.add(dict(attrs).get("id"))

    index = _index(site)
    ids = [Ids((site / url).read_text(encoding="utf-8")).ids for url, *_ in index["pages"]]
    lost = [place[:4] for place in index["places"] if place[2] not in ids[place[0]]]
    assert lost == []


def test_the_index_is_whole_and_small(site):
    index = _index(site)
    assert {url for url, *_ in index["pages"]} >= set(PAGES)
    kinds = [place[1] for place in index["places"]]
    for kind, least in [("section", 350), ("term", 200), ("api", 100), ("claim", 40),
                        ("exercise", 50), ("source", 50)]:  # fmt: skip
        assert kinds.count(kind) >= least, kind
    text = " ".join(place[6] for place in index["places"])
    assert not re.search(r"\\(frac|alpha|mathbb|begin|top)\b|\$\$", text), "TeX in the text"
    assert len(gzip.compress((site / INDEX).read_bytes())) < 280_000


# ---------------------------------------------------------------- the pages


def test_a_page_loads_the_index_only_for_a_search(browser, address):
    with Visit(browser, address, "book/how-to-use.html") as opened:
        asked = []
        opened.page.on("request", lambda request: asked.append(request.url))
        opened.page.reload(wait_until="load")
        assert any(url.split("?")[0].endswith("_static/search.js") for url in asked)
        assert not [url for url in asked if "sections-index" in url or "search-engine" in url]
        with opened.page.expect_request("**/sections-index.js"):
            opened.page.keyboard.press("Control+k")


@pytest.mark.parametrize("page", ["search.html", "book/how-to-use.html"])
def test_no_page_loads_the_other_search(browser, address, page):
    with Visit(browser, address, page) as opened:
        loaded = opened.page.evaluate("[...document.scripts].map(script => script.src)")
        assert any("_static/search.js" in url for url in loaded)
        assert not [
            url for url in loaded if re.search("searchindex|searchtools|language_data", url)
        ]


OPENERS = ["Control+k", "/", "field"]


@pytest.mark.parametrize("opener", OPENERS)
def test_the_dialog_opens_answers_and_leads_to_a_section(browser, address, opener):
    with Visit(browser, address, "notebooks/11_memory_time.html") as opened:
        page = opened.page
        button = page.locator(".bd-sidebar-primary .search-button-field")
        if opener == "field":
            button.click()
        else:
            button.focus()
            page.keyboard.press(opener)
        page.wait_for_selector("#pst-search-dialog[open]")
        assert page.locator("#pst-search-dialog input").evaluate(
            "node => node === document.activeElement"
        )
        page.keyboard.type("target modules")
        page.wait_for_selector('#pst-search-dialog ol[data-query="target modules"] li')
        said = page.locator("#pst-search-dialog [role=status]")
        assert "result" in said.inner_text()
        # Arrow keys go through the results and back to the field.
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        chosen = page.evaluate("document.activeElement.href")
        links = page.locator("#pst-search-dialog ol a").evaluate_all("n => n.map(a => a.href)")
        assert chosen == links[1]
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.type") == "search"
        # Enter in the field opens the first.
        with page.expect_navigation(wait_until="load"):
            page.keyboard.press("Enter")
        assert page.url == links[0]
        page.wait_for_function("document.querySelector(':target')")
        page.wait_for_function(
            """() => { const top = document.querySelector(':target').getBoundingClientRect().top;
            const bar = document.querySelector('.bd-header-article').getBoundingClientRect();
            return top >= bar.bottom - 1 && top < innerHeight / 2; }"""
        )
        # The words are marked, without a change to the page; Esc takes the marks away.
        assert page.evaluate("CSS.highlights.has('book-search')")
        assert page.locator("span.highlighted").count() == 0
        page.keyboard.press("Escape")
        assert not page.evaluate("CSS.highlights.has('book-search')")
        assert opened.errors == []
        assert opened.refused == []


def test_escape_closes_the_dialog_and_gives_the_focus_back(browser, address):
    with Visit(browser, address, "book/how-to-use.html") as opened:
        page = opened.page
        page.locator(".bd-sidebar-primary .search-button-field").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#pst-search-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#pst-search-dialog:not([open])", state="attached")
        page.wait_for_function("document.activeElement.classList.contains('search-button-field')")


def test_a_result_on_the_same_page(browser, address):
    with Visit(browser, address, "book/choosing.html") as opened:
        page = opened.page
        page.keyboard.press("/")
        page.keyboard.type("how to choose rank")
        page.wait_for_selector('#pst-search-dialog ol[data-query="how to choose rank"] li')
        page.keyboard.press("Enter")
        page.wait_for_selector("#pst-search-dialog:not([open])", state="attached")
        page.wait_for_url("**/choosing.html#step-6-the-rank")
        page.wait_for_function("CSS.highlights.has('book-search')")


def test_the_page_of_the_search(browser, address):
    with Visit(browser, address, "search.html?q=dropuot") as opened:
        page = opened.page
        page.wait_for_selector("#search-results ol[data-query=dropuot] li a")
        assert page.locator("#search-results a").first.get_attribute("href").partition("#")[2]
        box = page.locator(".bd-search-container input[type=search]")
        assert box.input_value() == "dropuot"
        box.fill("メモリ不足")
        page.wait_for_selector("#search-results ol[data-query=メモリ不足] li a")
        assert "%E3" in page.url or "メモリ" in page.url, "the address can be passed on"
        box.fill("xqzzjv")
        page.wait_for_selector("#search-results ol[data-query=xqzzjv]", state="attached")
        assert "Nothing found" in page.locator("#search-results [role=status]").inner_text()
        assert opened.errors == []


def test_it_works_from_a_disk(browser, site):
    with Visit(browser, site.as_uri(), "book/how-to-use.html") as opened:
        opened.page.keyboard.press("Control+k")
        opened.page.keyboard.type("OOM")
        opened.page.wait_for_selector("#pst-search-dialog ol[data-query=OOM] li a")
        with opened.page.expect_navigation(wait_until="load"):
            opened.page.keyboard.press("Enter")
        assert opened.page.url.endswith("book/memory.html#does-not-fit-in-memory")
        assert opened.refused == []
        assert opened.errors == []


def test_marks_of_other_searches_still_work(browser, address):
    """A link with ?highlight= marks the word, as in any book made with Sphinx."""
    with Visit(browser, address, "book/how-to-use.html?highlight=colab") as opened:
        opened.page.wait_for_selector("article span.highlighted")


def test_without_javascript(browser, address):
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{address}/search.html")
        links = page.locator(".bd-search-container noscript a, .bd-search-container li a")
        hrefs = links.evaluate_all("nodes => nodes.map(node => node.getAttribute('href'))")
        assert "genindex.html" in hrefs
        assert "book/index.html" in hrefs
        assert links.first.is_visible()
    finally:
        context.close()


def test_on_a_phone_the_dialog_fills_the_screen(browser, address):
    with Visit(browser, address, "book/how-to-use.html") as opened:
        page = opened.page
        page.set_viewport_size(PHONE)
        page.locator(".bd-header-article .search-button").click()
        page.wait_for_selector("#pst-search-dialog[open]")
        page.keyboard.type("learning rate")
        page.wait_for_selector('#pst-search-dialog ol[data-query="learning rate"] li')
        box = page.locator("#pst-search-dialog").bounding_box()
        assert (box["x"], box["y"]) == (0, 0)
        assert (box["width"], box["height"]) == (PHONE["width"], PHONE["height"])
        inner = page.locator("#pst-search-dialog ol").evaluate(
            "n => [n.scrollWidth, n.clientWidth]"
        )
        assert inner[0] <= inner[1]


# Something that opens the search, wholly within the window and with nothing over it.
IN_SIGHT = """() => [...document.querySelectorAll('.search-button__button, form.bd-search input')]
  .some(node => { const box = node.getBoundingClientRect();
    if (!box.width || box.top < 0 || box.left < 0 || box.bottom > innerHeight ||
        box.right > innerWidth) return false;
    const there = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return node.contains(there) || there.closest('form.bd-search')?.contains(node); })"""


@pytest.fixture(scope="module")
def plain(browser, address):
    """A window that draws no formulas, for tests that look at every page."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.route("**/mathjax/**", lambda route: route.abort())
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", [*PAGES, "search.html", "genindex.html"])
def test_the_search_is_in_sight(plain, address, name):
    plain.goto(f"{address}/{name}", wait_until="load")
    for width, height in SIZES:
        plain.set_viewport_size({"width": width, "height": height})
        for scrolled in (0, 1e6):  # the sidebar: at its top, and at its end
            plain.evaluate("y => document.querySelector('.bd-sidebar').scrollTo(0, y)", scrolled)
            try:  # a busy machine lays the page out a moment later
                plain.wait_for_function(IN_SIGHT, timeout=5000)
            except Error:
                pytest.fail(f"{width} x {height}, sidebar at {scrolled:.0f}", pytrace=False)


def test_the_rows_of_letters_in_the_glossary(plain, address):
    plain.set_viewport_size({"width": 1280, "height": 720})
    plain.goto(f"{address}/book/glossary.html", wait_until="load")
    plain.locator(".glossary-letters a", has_text=re.compile("^R$")).click()
    first = plain.evaluate("document.querySelector(':target').textContent")
    assert first.lower().startswith("r")
    plain.locator(".glossary-letters a", has_text=re.compile("^さ$")).click()
    plain.wait_for_function("document.querySelector(':target').tagName === 'TR'")
    assert plain.locator(":target td").first.inner_text() in (
        "最大絶対値",
        "差分更新",
        "差分微調整",
    )


def test_a_phone_can_close_the_dialog_and_read_what_is_typed(browser, address):
    with Visit(browser, address, "book/how-to-use.html") as opened:
        page = opened.page
        page.set_viewport_size(PHONE)
        page.locator(".bd-header-article .search-button").first.click()
        page.wait_for_selector("#pst-search-dialog[open]")
        text, glass = page.evaluate(
            """() => { const form = document.querySelector('#pst-search-dialog form');
            const field = form.querySelector('input'), seen = getComputedStyle(field);
            return [field.getBoundingClientRect().left + parseFloat(seen.paddingLeft),
              form.querySelector('i, svg').getBoundingClientRect().right]; }"""
        )
        assert glass <= text, "the glass lies over the text"
        page.get_by_role("button", name="Close", exact=True).click()
        page.wait_for_selector("#pst-search-dialog:not([open])", state="attached")


def test_a_contents_of_the_page_closes_when_a_place_is_chosen(browser, address):
    with Visit(browser, address, "book/memory.html") as opened:
        page = opened.page
        page.set_viewport_size(PHONE)
        page.locator(".secondary-toggle").first.click()
        page.wait_for_selector("#pst-secondary-sidebar-modal[open]")
        page.locator("#pst-secondary-sidebar-modal a", has_text="The decision table").click()
        page.wait_for_url("**/memory.html#*")
        page.wait_for_selector("#pst-secondary-sidebar-modal:not([open])", state="attached")


def test_japanese_in_results_says_that_it_is_japanese(browser, address):
    with Visit(browser, address, "search.html?q=量子化") as opened:
        page = opened.page
        page.wait_for_selector("#search-results ol[data-query=量子化] li")
        bare = page.evaluate(
            r"""() => { const walk = document.createTreeWalker(
              document.getElementById('search-results'), NodeFilter.SHOW_TEXT), bare = [];
            while (walk.nextNode()) {
              const node = walk.currentNode;
              if (/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]/u.test(node.data)
                && !node.parentElement.closest('[lang=ja]')) bare.push(node.data);
            } return bare; }"""
        )
        assert bare == []
