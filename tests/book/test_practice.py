"""The practitioner's pages: what they name exists, and what they tell PEFT to do, PEFT does."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = ("choosing", "memory", "symptoms")
MOST_WORDS = 2200
ROLE = re.compile(r"\{(?P<role>[\w:]+)\}`(?P<content>[^`]+)`")


def prose(path: Path) -> str:
    """The Markdown of a page or of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def page(name: str) -> Path:
    (found,) = (p for p in (BOOK / f"{name}.md", BOOK / f"{name}.ipynb") if p.exists())
    return found


def figures(path: Path) -> list[str]:
    if path.suffix == ".md":
        return []
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells]
    return [name for name in found if name]


def labels(path: Path) -> list[str]:
    """Everything on a page that a reference can lead to."""
    text = prose(path)
    return [
        *re.findall(r"^\(([\w:.-]+)\)=$", text, re.M),
        *re.findall(r"\$\$[ \t]*\(([\w:.-]+)\)", text),
        *re.findall(r"^:(?:label|name): *(\S+)", text, re.M),
        *figures(path),
    ]


SOURCES = [*(ROOT / "notebooks").glob("*.ipynb"), *BOOK.glob("*.md"), *BOOK.glob("*.ipynb")]


@pytest.fixture(scope="module")
def known() -> set[str]:
    return {label for path in SOURCES for label in labels(path)}


def targets(text: str, *roles: str) -> list[str]:
    found = []
    for role in ROLE.finditer(text):
        if role["role"] in roles:
            inner = re.search(r"<([^<>]+)>$", role["content"])
            found += (inner[1] if inner else role["content"]).split(",")
    return [target.strip() for target in found]


@pytest.mark.parametrize("name", PAGES)
def test_every_reference_leads_somewhere(name, known):
    text = prose(page(name))
    named = targets(text, "ref", "numref", "eq")
    assert len(named) > 10
    assert [target for target in named if target not in known] == []
    for target in targets(text, "doc"):
        assert (BOOK / f"{target}.md").exists() or (BOOK / f"{target}.ipynb").exists(), target
    entries = re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert [key for key in targets(text, "cite:t", "cite:p") if key not in entries] == []


def test_no_label_of_these_pages_is_used_twice():
    every = [label for path in SOURCES for label in labels(path)]
    own = {label for name in PAGES for label in labels(page(name))}
    assert [label for label in own if every.count(label) > 1] == []


@pytest.mark.parametrize("name", PAGES)
def test_is_in_the_contents_and_short(name):
    assert f"- file: book/{name}\n" in (BOOK / "_toc.yml").read_text(encoding="utf-8")
    assert len(prose(page(name)).split()) <= MOST_WORDS


def test_each_symptom_is_found_by_its_words():
    headings = re.findall(r"^## (.+)$", prose(page("symptoms")), re.M)
    text = " ".join(headings).lower()
    for words in (
        *("loss does not decrease", "nan", "no effect after loading", "catastrophic forgetting"),
        *("out of memory", "not found", "merged", "gradient checkpointing", "slower"),
    ):
        assert words in text, words
    labelled = re.findall(r"^\((symptom-[\w-]+)\)=\n## ", prose(page("symptoms")), re.M)
    assert len(labelled) >= 12


# --- the recipe ------------------------------------------------------------------------------


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", prose(page(name)), re.M | re.S)


def rows(name: str, first: str) -> list[list[str]]:
    """The rows of the page's table whose head begins with ``first``, as lists of cells."""
    lines = prose(page(name)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    table = lines[start + 2 :]
    end = next((i for i, line in enumerate(table) if not line.startswith("|")), len(table))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[:end]]


def listed(name: str, label: str) -> list[list[str]]:
    """The rows of the page's list-table of that name, without its head."""
    table = re.search(
        rf"```{{list-table}}[^`]*?:name: {label}\n.*?^```$", prose(page(name)), re.M | re.S
    )
    assert table
    entries = re.findall(r"^\* - (.*?)(?=^\* - |^```)", table[0], re.M | re.S)
    return [[cell.strip() for cell in re.split(r"^  - ", row, flags=re.M)] for row in entries[1:]]


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """What the page's first block makes."""
    pytest.importorskip("peft")
    space: dict[str, Any] = {}
    exec(blocks("choosing")[0], space)
    return space


def value(cell: str) -> Any:
    return ast.literal_eval(cell.strip("`"))


def test_peft_takes_the_recipe_and_has_the_defaults_of_the_table(recipe):
    import peft

    config, plain = recipe["config"], peft.LoraConfig()
    settings = listed("choosing", "tbl-recipe")
    written = re.findall(r"^    (\w+)=", blocks("choosing")[0], re.M)
    assert [row[0].strip("`") for row in settings] == written
    for name, here, default, why in settings:
        attribute = name.strip("`")
        assert getattr(config, attribute) == value(here), name
        assert why
        if attribute != "target_modules":  # the page says it in words
            assert getattr(plain, attribute) == (
                plain.init_lora_weights if attribute == "init_lora_weights" else value(default)
            ), name
    assert plain.target_modules is None
    assert plain.init_lora_weights is True


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_transformers_takes_the_settings_of_the_first_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(blocks("choosing")[1], space)
    arguments = space["arguments"]
    assert arguments.learning_rate == 2e-4
    assert arguments.warmup_steps * 10 == arguments.max_steps == 1000
    in_all = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert f"{in_all} in all" in prose(page("choosing"))


def adapted(config: Any) -> tuple[Any, dict[str, Any]]:
    import peft

    from minilora.lab import anatomy

    model = peft.get_peft_model(anatomy.build("LLaMA"), config)
    return model, anatomy.example_input("LLaMA")


def silent(model: Any) -> list[str]:
    space: dict[str, Any] = {"model": model}
    exec(blocks("choosing")[2], space)
    return space["silent"]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_the_look_for_silent_adapters_sees_one(recipe, capsys):
    pytest.importorskip("transformers")
    model, batch = adapted(recipe["config"])
    model(**batch).logits.square().sum().backward()
    assert silent(model) == []
    of_B = [(name, p) for name, p in model.named_parameters() if "lora_B" in name]
    assert len(of_B) == 14  # seven linear layers in each of two blocks; the head has none
    of_B[0][1].grad, of_B[1][1].grad = None, torch.zeros_like(of_B[1][1])
    assert silent(model) == [of_B[0][0], of_B[1][0]]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_finished_adapter_is_turned_down(recipe):
    pytest.importorskip("transformers")
    model, batch = adapted(recipe["config"])
    model.eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.01)
    with torch.no_grad():
        space: dict[str, Any] = {"model": model, "batch": batch}
        exec(blocks("choosing")[3], space)
        whole = model(**batch).logits
        with model.disable_adapter():
            base = model(**batch).logits
    part = (space["outputs"].logits - base).norm() / (whole - base).norm()
    assert 0.5 < part < 0.7  # nearly linear, where the update is small


def test_the_budget_adds_up():
    budget, total = rows("choosing", "stage"), 0
    for _, runs, so_far in budget:
        total += int(runs)
        assert int(so_far) == total
    text = prose(page("choosing"))
    assert total == 20 and "by twenty runs" in text
    assert f"at {budget[3][2]} runs" in text  # where rank 128 brings nothing
