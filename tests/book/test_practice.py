"""The practitioner's pages: what they name exists, and what they tell PEFT to do, PEFT does."""

from __future__ import annotations

import ast
import json
import re
import statistics
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = ("choosing", "memory", "symptoms")
MOST_WORDS = 2400
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
        *("answer never stops", "validation loss rises"),
    ):
        assert words in text, words
    labelled = re.findall(r"^\((symptom-[\w-]+)\)=\n## ", prose(page("symptoms")), re.M)
    assert len(labelled) >= 12


def test_each_section_of_symptoms_begins_with_peft():
    sections = re.findall(r"^\(symptom-[\w-]+\)=\n## .+\n\n(.+)", prose(page("symptoms")), re.M)
    assert len(sections) == len(re.findall(r"^\(symptom-", prose(page("symptoms")), re.M)) >= 18
    assert [first for first in sections if not first.startswith("**In PEFT.** ")] == []


def test_each_message_of_the_index_is_one_of_the_programs(tmp_path):
    """A message that a library has reworded sends nobody to the right section."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    spoken = ""
    for name in (
        *("peft/tuners/tuners_utils.py", "peft/peft_model.py", "torch/utils/checkpoint.py"),
        *("torch/nn/modules/module.py", "torch/nn/parallel/distributed.py"),
    ):
        package, _, rest = name.partition("/")
        found = find_spec(package)
        assert found and found.origin
        spoken += (Path(found.origin).parent / rest).read_text("utf-8")
    messages = [row[0] for row in rows("symptoms", "message")]
    assert len(messages) >= 9
    in_binaries = ("element 0 of tensors does not require grad", "CUDA out of memory")
    in_binaries += ("Expected to have finished reduction",)
    for message in messages:
        if message.startswith("`loss`") or message.strip("`") in in_binaries:
            continue
        for part in message.strip("`").split("…"):
            assert part.strip().replace("peft_config", "`peft_config`") in spoken, message
    with pytest.raises(RuntimeError, match=in_binaries[0]):
        torch.ones(1).sum().backward()


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


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A folder with a small LLaMA in it: what the pages' NAME stands for."""
    pytest.importorskip("transformers")
    from minilora.lab import anatomy

    anatomy.build("LLaMA").save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def loaded(block: str, name: str, **space: Any) -> dict[str, Any]:
    """What a block that loads a model makes, with the model in a folder."""
    code = re.sub(r'^NAME = ".*"$', f"NAME = {name!r}", block, flags=re.M)
    assert code != block
    exec(code, space)
    return space


def the_arguments(where: Path, **changed: Any) -> Any:
    """The settings of the page, on a CPU and without a word, with some changed."""
    import transformers

    code = blocks("choosing")[2].replace("from transformers import TrainingArguments\n", "")
    space: dict[str, Any] = {"TrainingArguments": dict}
    exec(code, space)
    here = {"output_dir": str(where), "save_strategy": "no"}
    here |= {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    return transformers.TrainingArguments(**(space["arguments"] | here | changed))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_transformers_takes_the_settings_of_the_first_run(tmp_path):
    pytest.importorskip("transformers")
    arguments = the_arguments(tmp_path)
    assert arguments.learning_rate == 2e-4
    assert arguments.warmup_steps * 10 == arguments.max_steps == 1000
    in_all = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    text = prose(page("choosing"))
    assert f"{in_all} in all" in text and f"{in_all * arguments.max_steps:,} sequences" in text
    fewest, most = (passes * 4000 // in_all for passes in (2, 3))
    assert f"{fewest} to {most} steps for 4,000 examples" in text
    assert arguments.bf16 and arguments.activation_checkpointing
    assert arguments.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.prediction_loss_only and arguments.per_device_eval_batch_size == 1


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_recipe_trains(recipe, tiny, tmp_path):
    """The three blocks in a Trainer: adapters in float32 move, the base in bfloat16 does not."""
    import transformers

    model = loaded(blocks("choosing")[1], tiny, **recipe)["model"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {p.dtype for name, p in before.items() if "lora_" in name} == {torch.float32}
    assert {p.dtype for name, p in before.items() if "lora_" not in name} == {torch.bfloat16}
    ids = torch.randint(50, (6, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    few = {"max_steps": 4, "warmup_steps": 1, "eval_steps": 2, "logging_steps": 1}
    arguments = the_arguments(tmp_path / "run", **few, gradient_accumulation_steps=2)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    seen = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(seen) == 2 and all(0 < loss < 10 for loss in seen)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_seed_before_the_adapter_decides_A_and_that_of_the_trainer_does_not(
    recipe, tiny, tmp_path
):
    import transformers

    ids = torch.arange(8)
    data = [{"input_ids": ids, "labels": ids}]

    def first_A(seed: int, of_trainer: int) -> torch.Tensor:
        block = blocks("choosing")[1].replace("set_seed(0)", f"set_seed({seed})")
        model = loaded(block, tiny, **recipe)["model"]
        arguments = the_arguments(tmp_path / "run", seed=of_trainer)
        transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
        return next(p for name, p in model.named_parameters() if "lora_A" in name).detach()

    one = first_A(0, 0)
    assert torch.equal(one, first_A(0, 1)) and not torch.equal(one, first_A(1, 0))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_is_silent_about_one_of_several_names(tiny):
    peft = pytest.importorskip("peft")
    from minilora.lab import anatomy

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = peft.LoraConfig(target_modules=["q_porj", "v_proj"])
        model = peft.get_peft_model(anatomy.build("LLaMA"), config)
    assert not any("q_porj" in str(warning.message) for warning in said)
    assert {name.split(".")[-1] for name in model.targeted_module_names} == {"v_proj"}
    with pytest.raises(ValueError, match="not found in the base model"):
        peft.get_peft_model(anatomy.build("LLaMA"), peft.LoraConfig(target_modules=["q_porj"]))


def adapted(config: Any) -> tuple[Any, dict[str, Any]]:
    import peft

    from minilora.lab import anatomy

    model = peft.get_peft_model(anatomy.build("LLaMA"), config)
    return model, anatomy.example_input("LLaMA")


def silent(model: Any) -> list[str]:
    space: dict[str, Any] = {"model": model}
    exec(blocks("choosing")[3], space)
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
def test_the_look_for_silent_adapters_sees_one_on_an_embedding():
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    model, batch = adapted(peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    batch["inputs_embeds"] = torch.randn(*batch.pop("input_ids").shape, 32)  # passes it by
    model(**batch).logits.square().sum().backward()
    (found,) = silent(model)
    assert "lora_embedding_B" in found


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
        exec(blocks("choosing")[4], space)
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
    assert total == 21 and f"{total} runs of 1,000 steps" in text


def test_the_price_is_what_its_factors_make():
    text = " ".join(prose(page("choosing")).split())
    runs, steps, batch, length, said = re.search(
        r"(\d+) runs of ([\d,]+) steps of (\d+) sequences of ([\d,]+) tokens pass ([\d.]+) billion",
        text,
    ).groups()  # type: ignore[union-attr]
    tokens = int(runs) * int(steps.replace(",", "")) * int(batch) * int(length.replace(",", ""))
    assert tokens / 1e9 == pytest.approx(float(said), abs=0.05)
    assert "six operations for each of seven billion numbers" in text
    assert "60 trillion operations a second" in text
    (days,) = re.findall(r"busy for (\d+) days", text)
    assert tokens * 6 * 7e9 / 60e12 / 86_400 == pytest.approx(int(days), abs=0.5)


def test_what_three_seeds_can_tell():
    """The half-width of a 95% interval over three differences, in their standard deviations."""
    stats = pytest.importorskip("scipy.stats")
    half = stats.t.ppf(0.975, 2) / 3**0.5
    assert half == pytest.approx(2.5, abs=0.03)
    assert "about $2.5\\,s$ to either side" in prose(page("choosing"))


# --- does not fit ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_box_loads_a_base_in_four_bits_and_one_in_bfloat16(recipe, tiny):
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    (block,) = blocks("memory")
    line = "    quantization_config=four_bits,"
    assert line in block

    def types(model: Any) -> set[torch.dtype]:
        return {p.dtype for p in model.parameters()}

    four = loaded(block, tiny)["model"]
    assert types(four) == {torch.uint8, torch.bfloat16}
    without = "\n".join(row for row in block.split("\n") if not row.startswith(line))
    assert types(loaded(without, tiny)["model"]) == {torch.bfloat16}

    def of_adapters(model: Any) -> set[torch.dtype]:
        return {p.dtype for name, p in model.named_parameters() if "lora_" in name}

    again = loaded(block, tiny)["model"]
    half = peft.get_peft_model(again, recipe["config"], autocast_adapter_dtype=False)
    assert of_adapters(half) == {torch.bfloat16}

    model = peft.get_peft_model(four, recipe["config"]).train()
    assert of_adapters(model) == {torch.float32}
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(50, (2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()
    assert silent(model) == []

    prepared = peft.prepare_model_for_kbit_training(loaded(block, tiny)["model"])
    assert types(prepared) == {torch.uint8, torch.float32}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_new_rows_and_heads_have_the_types_that_the_page_counts(tiny):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    def trained(**settings: Any) -> list[torch.nn.Parameter]:
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], **settings))
        named = model.named_parameters()
        return [p for name, p in named if p.requires_grad and "lora_" not in name]

    whole = trained(modules_to_save=["embed_tokens", "lm_head"])
    assert [p.dtype for p in whole] == [torch.bfloat16] * 2
    (rows_alone,) = trained(trainable_token_indices=[3, 4])
    assert rows_alone.shape[0] == 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_in_four_bits_no_input_is_copied_under_the_autocast_of_a_card(recipe, tiny, monkeypatch):
    """PEFT asks whether CUDA's autocast is on; here the CPU's stands in for it."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    from minilora.lab import measuring

    (block,) = blocks("memory")
    model = peft.get_peft_model(loaded(block, tiny)["model"], recipe["config"])
    attention = model.get_base_model().model.layers[0].self_attn
    x = torch.randn(512, attention.q_proj.in_features).bfloat16().requires_grad_()

    def run() -> list[torch.Tensor]:
        return [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]

    with torch.autocast("cpu", torch.bfloat16):
        copied = measuring.saved_bytes(run, model) / x.nbytes
        with monkeypatch.context() as patched:  # inside: autocast itself asks on its way in
            patched.setattr(torch, "is_autocast_enabled", lambda *device: True)
            shared = measuring.saved_bytes(run, model) / x.nbytes
    assert copied - shared == pytest.approx(2, abs=0.01)


# --- what the sections of the symptoms say of PEFT and transformers ---------------------------


@pytest.fixture
def llama() -> Iterator[Any]:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from minilora.lab import anatomy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lambda: anatomy.build("LLaMA")


def test_a_loaded_adapter_is_frozen_unless_asked(llama, tmp_path):
    import peft

    peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    for asked in (False, True):
        model = peft.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=asked)
        assert any(p.requires_grad for p in model.parameters()) is asked


def test_the_newer_checkpointing_is_the_default_and_settings_of_ones_own_bring_the_older(llama):
    for given, reentrant in ((None, False), ({}, None), ({"use_reentrant": False}, False)):
        model = llama()
        model.activation_checkpointing_enable(given)
        used = model.model.layers[0]._gradient_checkpointing_func.keywords
        assert used.get("use_reentrant") is reentrant
    with pytest.warns(UserWarning, match="use_reentrant"):  # None: PyTorch takes True, and warns
        torch.utils.checkpoint.checkpoint(torch.sin, torch.ones(1, requires_grad=True))


def test_a_trainer_hides_a_loss_that_is_nan(llama, tmp_path):
    import transformers

    ids = torch.randint(50, (4, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    data[2]["labels"] = torch.full_like(ids[2], -100)
    logged = {}
    for hidden in (True, False):
        arguments = the_arguments(
            tmp_path,
            **{"max_steps": 4, "warmup_steps": 0, "logging_steps": 1, "eval_strategy": "no"},
            **{"gradient_accumulation_steps": 1, "logging_nan_inf_filter": hidden},
        )
        trainer = transformers.Trainer(llama(), arguments, train_dataset=data)
        trainer.train()
        logged[hidden] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    finite = {hidden: all(x == x for x in losses) for hidden, losses in logged.items()}
    assert finite == {True: True, False: False}
    assert transformers.TrainingArguments.logging_nan_inf_filter is True


def test_the_head_that_each_task_type_saves():
    peft = pytest.importorskip("peft")
    for task, names in (
        *(("SEQ_CLS", {"classifier", "score"}), ("TOKEN_CLS", {"classifier", "score"})),
        *(("QUESTION_ANS", {"qa_outputs"}), ("CAUSAL_LM", None)),
    ):

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name in ("body", "classifier", "score", "qa_outputs"):
                    setattr(self, name, torch.nn.Linear(2, 2))
                self.config = {"model_type": "none"}
                self.prepare_inputs_for_generation = None

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.body(x)

        config = peft.LoraConfig(target_modules=["body"], task_type=task)
        model = peft.get_peft_model(Model(), config)
        saved = model.peft_config["default"].modules_to_save
        assert (set(saved) if saved else None) == names


def test_a_base_without_the_new_rows_does_not_take_the_adapter(llama, tiny, tmp_path):
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    base.resize_token_embeddings(53)
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    again = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    with pytest.raises(RuntimeError, match="size mismatch for"):
        peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    again.resize_token_embeddings(53)
    peft.PeftModel.from_pretrained(again, tmp_path / "adapter")


def test_the_collator_masks_the_end_where_padding_is_the_end():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

    words = {word: i for i, word in enumerate(("[END]", "[PAD]", "a", "b"))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="b"))
    for pad, ends in (("[END]", 0), ("[PAD]", 2)):
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="[END]", pad_token=pad
        )
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        batch = collate([{"input_ids": [2, 3, 2, 0]}, {"input_ids": [3, 0]}])
        assert (batch["labels"] == 0).sum() == ends


def test_sums_of_adapters_by_cat_and_by_linear(llama):
    """An adapter and the same with all signs turned: the one gives it back, the other nothing."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config, adapter_name="one")
    model.add_adapter("twin", config)
    numbers = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in numbers.items():
            if ".twin." in name:
                p.copy_(-numbers[name.replace(".twin.", ".one.")])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for kind, part in (("cat", 1.0), ("linear", 0.0)):
        model.add_weighted_adapter(["one", "twin"], [0.5, 0.5], kind, combination_type=kind)
        wanted = part * layer.get_delta_weight("one")
        torch.testing.assert_close(layer.get_delta_weight(kind), wanted, atol=1e-6, rtol=0)


def test_factors_status_and_a_second_adapter(llama):
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"])
    model = peft.get_peft_model(llama(), config)
    (shown,) = re.findall(r"`(\{m\.scaling.+?\})`", prose(page("symptoms")))
    assert eval(shown, {"model": model}) == {2.0}
    status = model.get_model_status()
    assert status.enabled and status.active_adapters == ["default"] and not status.merged_adapters
    model.add_adapter("second", config)
    model.set_adapter("second")
    assert model.active_adapters == ["second"]
    with pytest.warns(UserWarning, match="Already found"):
        peft.get_peft_model(model, config)


def test_the_best_adapter_comes_back_at_the_end(llama, tmp_path):
    """As 'Validation loss rises' says: save when you evaluate, and load the best."""
    import peft
    import transformers

    torch.manual_seed(0)
    ids = torch.randint(3, 50, (6, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    few = {"max_steps": 6, "warmup_steps": 0, "eval_steps": 1, "logging_steps": 1}
    arguments = the_arguments(
        tmp_path,
        **few,
        **{"gradient_accumulation_steps": 1, "learning_rate": 0.05, "bf16": False},
        **{"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True},
    )
    model = peft.get_peft_model(llama(), config)
    trainer = transformers.Trainer(model, arguments, train_dataset=data[:2], eval_dataset=data[2:])
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = min(losses)
    assert best < losses[-1], "the run is to overfit"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-4)
    assert statistics.median(losses) > best
