"""The memory experiment at its smallest, its recording, and the card's code without a card."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from experiment_help import make_row

from minilora import experiments
from minilora.experiments import memory, recording
from minilora.experiments.memory import figures, timing, weighing
from minilora.experiments.memory.arms import HAS_PEFT, Masters
from minilora.experiments.memory.weighing import weigh
from minilora.experiments.summaries import quantities, ratios
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.predicting import FULL, LORA_QV, Step

BYTES = ("weights", "gradients", "optimizer", "activations", "peak")


@pytest.fixture(scope="module")
def smoke():
    return memory.run("smoke")


# ---------------------------------------------------------------- what it measures


def test_every_arm_is_weighed_and_timed(smoke):
    size = memory.PROFILES["smoke"]
    names = [arm.name for arm in memory.arms(size)]
    assert "full, master weights" in names and len(names) == len(set(names)) == 9 + HAS_PEFT
    for name in names:
        for what in BYTES:
            (one,) = quantities(smoke, what, name)
            assert one.measured == pytest.approx(one.predicted, rel=0.02), (name, what)
            assert one.unit == "bytes" and one.size == size.model.width
        (flops,) = quantities(smoke, "flops", name)
        assert flops.predicted is None or flops.predicted == flops.measured
        assert (flops.predicted is None) == ("checkpointing" in name)
        assert quantities(smoke, "calls", name)[0].measured > 100
        times = quantities(smoke, "step", name)
        assert [one.repeat for one in times] == list(range(size.rounds))
        assert all(one.measured > 0 and one.unit == "seconds" for one in times)
    assert smoke.peak_bytes > max(one.measured for one in quantities(smoke, "peak"))


def test_narrow_stacks_and_inference_are_there(smoke):
    size = memory.PROFILES["smoke"]
    for width in size.narrow.widths:
        for arm in ("full", "LoRA", "floor"):
            rounds = quantities(smoke, "narrow step", arm, width)
            assert len(rounds) == size.narrow.rounds * 128 // width
            (flops,) = quantities(smoke, "narrow flops", arm, width)
            assert flops.measured == flops.predicted > 0
    calls = [quantities(smoke, "narrow calls", arm, 16)[0] for arm in ("LoRA", "full")]
    assert calls[0].measured > calls[1].measured
    for tokens in (1, size.sequences * size.tokens):
        arms = {one.arm for one in quantities(smoke, "forward", size=tokens)}
        assert arms == {"base", "LoRA", "LoRA, merged"}
    text = figures.step_table(smoke).splitlines()
    assert (
        len(text) == 10 + HAS_PEFT and text[1].split()[0] == "full" and text[1].split()[-1] == "1"
    )
    with pytest.raises(ValueError, match="no 'forward' of 'PEFT' at 1"):
        quantities(smoke, "forward", "PEFT", 1)


def test_arms_train_what_they_say():
    size = memory.PROFILES["smoke"]
    for arm in memory.arms(size):
        training = memory.make(arm, size, "cpu")
        before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
        for _ in range(2):  # B alone moves in the first step
            training.step()
        moved = {
            name
            for name, p in training.model.named_parameters()
            if not torch.equal(p, before[name])
        }
        if arm.kind == "floor":
            assert not moved
        elif arm.peft:
            assert moved and all(".lora_" in name for name in moved)
        elif arm.kind == "lora":
            assert moved and all(name.endswith((".A", ".B")) for name in moved)
        elif arm.method.masters:
            assert {"embedding.weight", "positions", "norm.bias", "head.weight"} <= moved
            assert "norm.weight" not in moved  # at 1, where bfloat16 is too coarse for a step


def test_peft_keeps_what_the_textbook_form_keeps():
    pytest.importorskip("peft")
    size = memory.PROFILES["smoke"]
    arms = {arm.name: arm for arm in memory.arms(size)}
    theirs = weigh(memory.make(arms["LoRA by PEFT"], size, "cpu"), 0)
    ours = weigh(memory.make(arms["LoRA, textbook form"], size, "cpu"), 0)
    for what in BYTES:
        assert theirs[what][1:] == ours[what][1:]
    model = memory.make(arms["LoRA by PEFT"], size, "cpu").model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert "lora_A" in dict(model.blocks[0].q_proj.named_modules())
    assert not any(arm.peft for arm in memory.arms(replace(size, peft=False)))


def test_masters_move_a_weight_that_is_too_coarse():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(width=8, layers=1, heads=1, vocab=11, context=4)).bfloat16()
    alone = Decoder(DecoderConfig(width=8, layers=1, heads=1, vocab=11, context=4)).bfloat16()
    for one in (model, alone):
        torch.nn.init.ones_(one.norm.weight)
    masters = Masters(model, lr=1e-4)
    plain = torch.optim.AdamW(alone.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(60):  # together six thousandths: more than the spacing below 1
        for one in (model, alone):
            for p in one.parameters():
                p.grad = torch.ones_like(p)
        masters.step()
        plain.step()
    assert torch.equal(alone.norm.weight, torch.ones(8).bfloat16())
    assert (model.norm.weight < 1).all()
    assert all(p.grad is None for p in model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    assert masters.nbytes() == 12 * parameters + 4 * len(list(model.parameters()))
    assert {id(w) for part in masters.pairs for w, _ in part} == set(map(id, model.parameters()))


# ---------------------------------------------------------------- figures


@pytest.fixture
def ax():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_block_is_drawn_as_it_is_predicted(ax):
    step = Step(DecoderConfig(), FULL, 1, 8)
    steps = {"full": step, "Q, V": replace(step, method=LORA_QV)}
    figures.draw_block(ax, steps)
    assert [text for text in texts(ax) if " of " in text] == ["16 of 16", "11 of 16"]
    widths = [bar.get_width() for bar in ax.patches]
    assert len(widths) == 20 and sum(widths) == pytest.approx(2 * (16 - 10 * 0.08))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["full", "Q, V"]
    assert set(figures.TENSORS) <= set(texts(ax))
    small = {"attention sums", "A x", "copies of A, B"}
    assert step.block().keys() - small <= set(figures.TENSORS)


def test_bars_are_as_long_as_the_bytes(ax, smoke):
    figures.draw_bytes(ax, smoke, ["full", "QLoRA"])
    lengths = [bar.get_width() * 2**20 for bar in ax.patches]
    assert len(lengths) == 2 * 2 * 4
    for arm, found in (("full", lengths[4:8]), ("QLoRA", lengths[12:])):
        whats = ("weights", "gradients", "optimizer", "activations")
        measured = [quantities(smoke, what, arm)[0].measured for what in whats]
        assert found == pytest.approx(measured)
    assert sum("measured, peak" in text for text in texts(ax)) == 2


def test_what_is_only_predicted_is_drawn_with_its_peak(ax):
    steps = memory.steps(memory.PROFILES["gpu"], "cuda")
    figures.draw_predicted(ax, steps)
    held = steps["full"].bytes()
    assert sum(bar.get_width() for bar in ax.patches[:4]) * 2**30 == pytest.approx(held.total)
    assert f"peak {steps['full'].peak() / 2**30:.3g}" in texts(ax)


def test_times_are_drawn_beside_those_of_full_fine_tuning(ax, smoke):
    figures.draw_times(ax, smoke, ["full", "LoRA"])
    found = ratios(smoke, "step", "LoRA", "full", 32)
    assert {"1", str(figures.share(found)), "2/3"} <= set(texts(ax))
    ax.clear()
    figures.draw_widths(ax, smoke)
    assert {"LoRA, by the clock", "LoRA, by count", "floor, by the clock"} <= set(texts(ax))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "32"]


def test_many_runs_in_one_pass_are_timed_and_drawn(ax, smoke):
    size = memory.PROFILES["smoke"]
    for batch in size.sweeps.batches:
        for count in size.sweeps.counts:
            for arm in ("one by one", "in one pass"):
                times = quantities(smoke, f"runs of {batch} a step", arm, count)
                assert len(times) == 3 and all(one.measured > 0 for one in times)
    figures.draw_cells(ax, smoke)
    assert texts(ax) == ["2 pictures a step", "3 pictures a step", "one by one"]
    drawn = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "D"]
    seen = ratios(smoke, "runs of 3 a step", "in one pass", "one by one", 1)
    assert drawn == [figures.share(seen).mean]


def test_the_share_of_times_is_that_of_their_logarithms():
    """By hand: logarithms −a, 0, a have the mean 0 and the standard error a / √3."""
    found = figures.share([0.5, 1.0, 2.0])
    half = 4.302653 * math.log(2) / 3**0.5  # the t of two degrees of freedom
    assert found.mean == pytest.approx(1.0)
    assert found[1:] == pytest.approx((math.exp(-half), math.exp(half)), rel=1e-5)
    upside_down = figures.share([2.0, 1.0, 0.5, 0.5])
    again = figures.share([0.5, 1.0, 2.0, 2.0])
    assert 1 / upside_down.mean == pytest.approx(again.mean)
    assert str(figures.Share(0.876, 0.76, 1.074)) == "0.88 (0.76 to 1.07)"


def test_one_by_one_is_the_run_that_a_sweep_makes(monkeypatch):
    """The two ways that are timed do the same work: the same losses, up to rounding."""
    size = memory.PROFILES["smoke"]
    losses, results = [], []
    real_fit, real_sweep = timing.fit, timing.sweep
    monkeypatch.setattr(
        timing, "fit", lambda *a, **k: losses.append(real_fit(*a, **k).loss) or None
    )
    monkeypatch.setattr(
        timing, "sweep", lambda *a, **k: results.append(real_sweep(*a, **k)) or results[-1]
    )
    few = replace(size, sweeps=replace(size.sweeps, counts=(2,), batches=(4,), steps=3))
    timing.seconds_of_sweeps(few, torch.device("cpu"))
    mine, together = losses[:2], [one.loss for one in results[0]]
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(together), rtol=1e-4, atol=1e-5)
    assert mine[0] != mine[1]


# ---------------------------------------------------------------- the card's profile


def test_the_gpu_profile_is_about_a_billion_parameters_and_fits_one_large_card():
    size = memory.PROFILES["gpu"]
    assert 1.0e9 < size.model.parameters < 1.1e9
    for arm in memory.arms(size):
        assert arm.at(size, "cuda:0").peak() < 30 * 2**30
    # Where the logits decide, the prediction needs no guess at what a block has in passing.
    step = Step(size.model, FULL, size.sequences, size.tokens, torch.bfloat16, device="cuda")
    held, table = step.bytes(), step.n * size.model.vocab * 2
    assert step.peak() == held.weights + held.optimizer + held.activations + 3 * table


def test_the_card_is_asked_for_its_peak(monkeypatch):
    """There may be no card here: its counters are played, and the work is done on the CPU."""
    size = memory.PROFILES["smoke"]
    training = memory.make(memory.arms(size)[1], size, "cpu")
    training.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 5000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 9000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    found = weigh(training, start=1000)
    assert found["peak"][1] == (5000 - 1000) + (9000 - 5000)
    assert found["weights"][1] == found["weights"][2]


def test_operations_out_of_sight_are_not_recorded(monkeypatch):
    size = memory.PROFILES["smoke"]
    training = memory.make(memory.arms(size)[0], size, "cpu")
    seen = weighing.watch
    half = lambda run: replace(seen(run), flops=seen(run).flops // 2)  # noqa: E731
    monkeypatch.setattr(weighing, "watch", half)
    with pytest.raises(RuntimeError, match="full: a step must make .* operations, but"):
        weigh(training, 0)


def test_a_card_s_libraries_are_warmed_up_at_full_size(monkeypatch):
    """The devices are played by 'meta', where tensors have sizes and no numbers."""
    made = []
    monkeypatch.setattr(
        weighing, "make", lambda arm, profile, device: made.append((arm.name, profile)) or Stepper()
    )
    size = replace(memory.PROFILES["gpu"], peft=False)
    weighing.warm_up(size, torch.device("meta"))
    assert {name for name, _ in made} >= {"full", "QLoRA", "floor", "full, master weights"}
    assert made[-1] == ("floor", size)
    assert all(profile.model.width == 32 for _, profile in made[:-1])


class Stepper:
    def step(self):
        pass


def test_arms_take_turns_on_a_card_that_holds_them_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
    size, card = memory.PROFILES["gpu"], torch.device("cuda", 0)
    compared = memory.arms(size)
    for gib, groups in ((139, 1), (24, len(compared))):
        free = gib * 2**30
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, free))
        found = timing.side_by_side(compared, size, card)
        assert len(found) == groups and [arm for group in found for arm in group] == compared
    assert timing.side_by_side(compared, size, torch.device("cpu")) == [compared]


def test_no_number_of_the_cpu_meets_one_of_the_card(monkeypatch):
    """A step of every arm on 'meta': mixing devices would raise, as it would on a card."""
    size, real = memory.PROFILES["smoke"], torch.optim.AdamW
    # Its fused form does not know 'meta'.
    monkeypatch.setattr(torch.optim, "AdamW", lambda trained, lr, fused: real(trained, lr=lr))
    for arm in memory.arms(size):
        if not arm.method.quantized:  # whose numbers are looked at
            memory.make(arm, size, "meta").step()


def test_only_the_gpu_profile_runs_on_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, device in (("gpu", "cuda"), ("cpu", "cpu"), ("smoke", "cpu")):
        size = memory.PROFILES[name]
        machine = memory.EXPERIMENT._machine(size, None, None, None, False)
        assert machine.device.type == device


def test_a_recording_from_a_card_keeps_to_the_prediction():
    found = experiments.load_recording("memory", "gpu")
    if found is None:
        pytest.skip("not recorded yet")
    for what in BYTES:
        for one in quantities(found, what):
            if one.predicted:
                assert one.measured == pytest.approx(one.predicted, rel=0.02), (one.arm, what)


# ---------------------------------------------------------------- quantities in a recording


def test_quantities_survive_the_disk(tmp_path, smoke):
    path = recording.write_recording(smoke, tmp_path)
    back = recording.read_recording(path)
    assert back.rows == [] and len(back.quantities) == len(smoke.quantities)
    for a, b in zip(back.quantities, smoke.quantities, strict=True):
        assert (a.arm, a.what, a.size, a.repeat, a.unit) == (
            b.arm,
            b.what,
            b.size,
            b.repeat,
            b.unit,
        )
        assert a.measured == pytest.approx(b.measured, rel=1e-5)
        assert a.predicted == b.predicted
    assert not experiments.is_stale(back)


def test_a_recording_from_before_there_were_quantities_is_read(smoke):
    content = asdict(smoke)
    content["rows"] = [asdict(make_row())]
    del content["quantities"]
    recording.check_recording(content)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: c.update(quantities=[]), "without rows or quantities"),
        (lambda c: c.update(quantities={}), "quantities must be list"),
        (lambda c: c["quantities"][0].pop("unit"), "quantity 0 lacks unit"),
        (lambda c: c["quantities"][0].update(unit="furlongs"), "unit"),
        (lambda c: c["quantities"][0].update(measured=None), "measured"),
        (lambda c: c["quantities"][0].update(measured=math.inf), "measured"),
        (lambda c: c["quantities"][0].update(predicted=-1), "predicted"),
        (lambda c: c["quantities"][0].update(size=1.5), "size"),
        (lambda c: c["quantities"].append(dict(c["quantities"][0])), "repeats"),
    ],
)
def test_an_unsound_quantity_is_refused(smoke, break_it, says):
    content = asdict(smoke)
    recording.check_recording(content)
    break_it(content)
    with pytest.raises(ValueError, match=says):
        recording.check_recording(content)
