"""What ``inspect`` measures, and that each kind of fault is said in a sentence of its own."""

import json
import re

import pytest
import torch
from folder_help import LAYERS, base, factors, folder, settings
from safetensors.torch import save_file

from minilora.folder import AdapterError
from minilora.inspection import inspect, table_rows
from minilora.pages import page


def codes(report, level=None):
    return [f.code for f in report.findings if level in (None, f.level)]


def key(path, name):
    return f"base_model.model.{path}.lora_{name}.weight"


# ------------------------------------------------------------------------------- numbers


def test_a_sound_adapter_is_measured_as_its_dense_updates_are(tmp_path):
    report = inspect(folder(tmp_path / "a"), base(tmp_path / "b"))
    assert not report.broken and codes(report, "warning") == []
    assert [row.path for row in report.layers] == LAYERS
    tensors, weights = factors(), {}
    for number, row in enumerate(report.layers):
        update = 2.0 * tensors[key(row.path, "B")] @ tensors[key(row.path, "A")]
        values = torch.linalg.svdvals(update.double())[:4]
        torch.testing.assert_close(torch.tensor(row.values).double(), values, rtol=1e-5, atol=0)
        assert row.norm == pytest.approx(float(update.norm()), rel=1e-5)
        share = values.square().cumsum(0) / values.square().sum()
        assert row.r90 == int((share < 0.9).sum()) + 1
        assert row.r99 == int((share < 0.99).sum()) + 1
        p = values / values.sum()
        assert row.effective == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)
        assert (row.r, row.scale, row.shape, row.parameters) == (4, 2.0, (16, 16), 128)
        weights[number] = update
    assert report.facts["factor"].startswith("2 (alpha / r)")
    assert report.facts["parameters"] == "1,024"


def test_beside_the_base(tmp_path):
    """The norm of the weight, what bfloat16 loses, and intruders as chapter 13 counts them."""
    where = base(tmp_path / "b", size=1.0)
    report = inspect(folder(tmp_path / "a", factors(size=0.002)), where)
    generator = torch.Generator().manual_seed(1)
    tensors = factors(size=0.002)
    for row in report.layers:
        weight = torch.randn(16, 16, generator=generator)
        update = 2.0 * tensors[key(row.path, "B")] @ tensors[key(row.path, "A")]
        assert row.relative == pytest.approx(float(update.norm() / weight.norm()), rel=0.01)
        held = weight.bfloat16()
        new = (held.float() + update).bfloat16()
        lost = (new.float() - held.float() - update).norm() / update.norm()
        assert row.lost_in_bf16 == pytest.approx(float(lost), rel=1e-4)
    assert "rounded-away" in codes(report, "warning")


def test_intruders_are_counted_beside_those_of_chance(tmp_path):
    """One large direction that the base lacks, against a base with clear directions of its own."""
    path = LAYERS[0]
    U = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3))).Q
    weight = (U * torch.linspace(2, 1, 16)) @ U.T
    save_file({f"{path}.weight": weight}, _made(tmp_path / "b") / "model.safetensors")
    direction = U.sum(1, keepdim=True) / 4  # cosine 1/4 with every direction of the base
    tensors = {
        key(path, "A"): direction.T.repeat(4, 1) * 2,
        key(path, "B"): direction.repeat(1, 4) * 2,
    }
    config = settings(target_modules=["q_proj"])
    report = inspect(folder(tmp_path / "a", tensors, config), tmp_path / "b")
    assert report.layers[0].intruders == 1
    assert report.layers[0].intruders_of_chance is not None
    assert inspect(tmp_path / "a", tmp_path / "b", intruders=False).layers[0].intruders is None


def _made(path):
    path.mkdir()
    return path


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    layers = [f"model.layers.{n}.q_proj" for n in (10, 2, 0)]
    where = folder(tmp_path / "a", factors(layers), settings(target_modules=["q_proj"]))
    assert [row.path for row in inspect(where).layers] == layers[::-1]


# ------------------------------------------------------------------------------- faults


def _without(tensors, word):
    return {k: v for k, v in tensors.items() if word not in k}


def _changed(tensors, match, change):
    return {k: change(v) if re.search(match, k) else v for k, v in tensors.items()}


def _renamed(tensors, change):
    return {change(k): v for k, v in tensors.items()}


NAN = float("nan")
CASES = {
    "never trained": (
        _changed(factors(), "lora_B", lambda t: t * 0), {}, "never-trained", "B is zero in every"
    ),
    "not a number": (
        _changed(factors(), r"2\.self_attn\.q_proj\.lora_B", lambda t: t * NAN), {},
        "not-finite", "1 of 8 layers hold NaN or infinity (model.layers.2.self_attn.q_proj)",
    ),
    "infinite A": (
        _changed(factors(), r"1\..*v_proj\.lora_A", lambda t: t / 0), {}, "not-finite", "1 of 8",
    ),
    "a target is missing": (
        _without(factors(), "v_proj"), {}, "config", "names 'v_proj', but the file has no factors"
    ),
    "a target is not named": (
        factors(), {"target_modules": ["q_proj"]}, "config", "which target_modules does not name"
    ),
    "another rank": (factors(), {"r": 16}, "config", "rank 4, but adapter_config.json says r = 16"),
    "half a pair": (
        _without(factors(), "0.self_attn.q_proj.lora_B"), {}, "config", "lora_A and no lora_B"
    ),
    "transposed": (
        _changed(factors(), "lora_", lambda t: t.T.contiguous()), {}, "config",
        "exchanged or transposed",
    ),
    "no alpha": (
        factors(), {"lora_alpha": None}, "config", "alpha must be a number, but is None",
    ),
    "integers": (
        _changed(factors(), r"0\..*q_proj\.lora_A", lambda t: t.int()), {}, "config", "torch.int32"
    ),
    "a lost head": (
        factors(), {"modules_to_save": ["score"]}, "config", "names 'score', but the file has no",
    ),
    "compiled": (
        _renamed(factors(), lambda k: k.replace("model.layers", "_orig_mod.layers")), {}, "keys",
        "name a wrapper",
    ),
    "the adapter's name": (
        _renamed(factors(), lambda k: k.replace(".weight", ".default.weight")), {}, "keys",
        "PEFT passes over them",
    ),
    "no prefix": (
        _renamed(factors(), lambda k: k.removeprefix("base_model.model.")), {}, "keys", "convert",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_said(name, tmp_path):
    tensors, changes, code, words = CASES[name]
    report = inspect(folder(tmp_path / "a", tensors, settings(**changes)))
    assert report.broken
    texts = [f.text for f in report.findings if f.code == code and f.level == "broken"]
    assert any(words in text for text in texts), report.findings
    assert codes(report, "broken") == [code]  # once, and nothing else is called broken


WARNINGS = {
    "only some layers": (
        _changed(factors(), r"layers\.[01]\..*lora_B", lambda t: t * 0), "partly-trained",
        "Only 4 of 8 layers were trained; B is zero in model.layers.{0-1}.self_attn.q_proj",
    ),
    "hardly trained": (factors(size=1e-5), "hardly-trained", "B has hardly left zero"),
    "a gap": (
        _without(factors(), "3.self_attn.v_proj"), "gap",
        "v_proj is adapted in 3 of 4 blocks, not in 3",
    ),
    "one wild layer": (
        _changed(factors(), r"3\..*v_proj\.lora_B", lambda t: t * 100), "outlier",
        "model.layers.3.self_attn.v_proj is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_suspicious_is_said(name, tmp_path):
    tensors, code, words = WARNINGS[name]
    report = inspect(folder(tmp_path / "a", tensors))
    assert codes(report, "warning") == [code] and not report.broken
    assert words in next(f.text for f in report.findings if f.code == code)


def test_an_update_larger_than_its_weight_is_said(tmp_path):
    report = inspect(folder(tmp_path / "a", factors(size=1)), base(tmp_path / "b", size=0.1))
    text = next(f.text for f in report.findings if f.code == "too-strong")
    worst = max(row.relative for row in report.layers)
    assert "In 8 of 8 layers" in text and f"up to {worst:.1f} times" in text


def test_a_base_that_was_changed_before_training_is_said(tmp_path):
    report = inspect(folder(tmp_path / "a", config=settings(init_lora_weights="pissa")))
    assert codes(report, "warning") == ["changed-base"]


def test_spare_rank_is_said_with_what_a_cut_would_keep(tmp_path):
    tensors = factors(r=16, seed=5)
    for name in tensors:  # two directions are a hundred times as large
        if "lora_B" in name:
            tensors[name][:, 2:] *= 0.01
    report = inspect(folder(tmp_path / "a", tensors, settings(r=16)))
    text = next(f.text for f in report.findings if f.code == "spare-rank")
    held = {row.r99 for row in report.layers}
    assert held <= {1, 2} and "Of rank 16, 2 directions hold 99%" in text
    numbers = sum(row.r99 for row in report.layers) / (16 * len(report.layers))
    assert f"keep {numbers:.0%} of the numbers" in text


def test_what_another_reading_of_alpha_would_do(tmp_path):
    factor = inspect(folder(tmp_path / "a")).facts["factor"]
    assert factor == "2 (alpha / r); read as alpha / √r 4, as a bare alpha 8"
    report = inspect(folder(tmp_path / "b", config=settings(use_rslora=True)))
    assert report.facts["factor"] == "4 (alpha / √r)"
    text = next(f.text for f in report.findings if f.code == "factor")
    assert "ignores that setting would make it 2 times weaker" in text


def test_factors_that_differ_by_layer_are_said(tmp_path):
    where = folder(tmp_path / "a", config=settings(alpha_pattern={"v_proj": 32}))
    report = inspect(where)
    assert {row.scale for row in report.layers} == {2.0, 8.0}
    assert "patterns" in codes(report, "note")


# ------------------------------------------------------------------- what cannot be read


def test_a_damaged_file(tmp_path):
    where = folder(tmp_path / "a")
    file = where / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    report = inspect(where)
    assert report.broken and report.kind == "unreadable"
    assert "damaged" in report.findings[0].text


def test_a_pickle_and_an_empty_folder(tmp_path):
    (_made(tmp_path / "a") / "adapter_model.bin").write_bytes(b"x")
    assert "pickle" in inspect(tmp_path / "a").findings[0].text
    assert "empty" in inspect(_made(tmp_path / "b")).findings[0].text


def test_no_config(tmp_path):
    where = folder(tmp_path / "a")
    (where / "adapter_config.json").unlink()
    report = inspect(where)
    assert report.broken and "holds no adapter_config.json" in report.findings[0].text
    assert "--alpha" in report.findings[0].text


def test_another_kind_of_peft(tmp_path):
    where = folder(tmp_path / "a", config={"peft_type": "IA3"})
    report = inspect(where)
    assert "the kind IA3, not LoRA" in " ".join(f.text for f in report.findings)


def test_another_program_s_file_is_named(tmp_path):
    tensors = {"model.layers.0.q_proj.lora_a": torch.ones(16, 4),
               "model.layers.0.q_proj.lora_b": torch.ones(4, 16)}  # fmt: skip
    save_file(tensors, tmp_path / "adapters.safetensors")
    for place in (tmp_path, tmp_path / "adapters.safetensors"):
        report = inspect(place)
        assert report.kind == "mlx-lm" and codes(report) == ["other-format"]
        assert "PEFT cannot load it" in report.findings[0].text and report.broken
        assert "lora_a" in report.facts["keys such as"]


def test_a_whole_model_is_no_adapter(tmp_path):
    report = inspect(base(tmp_path / "b") / "model.safetensors")
    assert report.broken and "it looks like a whole model" in report.findings[0].text


def test_no_such_place_and_another_base(tmp_path):
    with pytest.raises(AdapterError, match="does not exist"):
        inspect(tmp_path / "nothing")
    where = folder(tmp_path / "a")
    other = base(tmp_path / "b", layers=["encoder.0.weight_of_another"])
    with pytest.raises(AdapterError, match="is it the base that the adapter was trained on"):
        inspect(where, other)
    narrow = base(tmp_path / "c", width=8)
    with pytest.raises(AdapterError, match=r"\(16, 16\).*\(8, 8\)"):
        inspect(where, narrow)


# ------------------------------------------------------------------------------- outputs


def test_the_json_is_plain_and_complete(tmp_path):
    tensors = _changed(factors(), r"2\..*q_proj\.lora_B", lambda t: t * NAN)
    report = inspect(folder(tmp_path / "a", tensors))
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["broken"] is True and len(loaded["layers"]) == 8
    assert loaded["layers"][4]["norm"] is None
    assert loaded["findings"][0]["code"] == "not-finite"


def test_the_page_draws_every_spectrum_and_escapes_names(tmp_path):
    tensors = factors(["<script>alert(1)</script>.q_proj", *LAYERS[1:]])
    report = inspect(folder(tmp_path / "a", tensors))
    html = page(report)
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert html.count("<svg") == len(report.layers)
    assert html.count("<rect") == sum(len(row.values) for row in report.layers)
    assert "http" not in html


def test_a_name_that_would_steer_a_terminal_is_shown(tmp_path):
    tensors = factors(["model.\x1b[2J.q_proj", *LAYERS[1:]])
    text = str(inspect(folder(tmp_path / "a", tensors)))
    assert "\x1b" not in text and "model.\\x1b[2J.q_proj" in text


def test_every_row_of_the_table_has_a_cell_for_each_column(tmp_path):
    report = inspect(folder(tmp_path / "a"), base(tmp_path / "b"))
    rows = table_rows(report.layers)
    assert len(rows) == 9 and {len(row) for row in rows} == {len(rows[0])}
    assert str(report).count("model.layers") >= 8
