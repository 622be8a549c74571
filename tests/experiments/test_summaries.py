"""From rows to the few numbers of a figure, by hand."""

import math

import pytest
from experiment_help import make_row, recorded, tuned

from minilora.experiments import summaries
from minilora.experiments.tuning import best_rate


def test_summary_by_hand():
    rows = [make_row(seed=s, accuracy=v) for s, v in enumerate((0.6, 0.7, 0.8))]
    rows.append(make_row(seed=9, accuracy=0.1, stage="tune"))
    rows.append(make_row(seed=9, accuracy=0.1, labels=80))
    (one,) = summaries.summarise(recorded(rows))
    assert one.seeds == 3 and one.values == (0.6, 0.7, 0.8)
    assert one.accuracy == pytest.approx(0.7)
    assert one.accuracy_se == pytest.approx(0.1 / math.sqrt(3))
    (other,) = summaries.summarise(recorded(rows), labels=80)
    assert other.accuracy == 0.1 and math.isnan(other.accuracy_se)
    with pytest.raises(ValueError, match="no run with 7 labels"):
        summaries.summarise(recorded(rows), labels=7)


def test_pairing_by_hand():
    a = [make_row("a", s, v) for s, v in enumerate((0.6, 0.7, 0.9))]
    b = [make_row("b", s, v) for s, v in enumerate((0.5, 0.5, 0.6))]
    found = summaries.paired(recorded([*a, *reversed(b)]), "a", "b")
    # differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(0.975, 2) = 4.3027
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert not found.detectable and found.seeds == 3
    with pytest.raises(ValueError, match="no test rows of 'c'"):
        summaries.paired(recorded(a), "a", "c")
    with pytest.raises(ValueError, match="need 2"):
        summaries.paired(recorded([a[0], b[0]]), "a", "b")


def test_tuning_curve_and_table():
    rows = [tuned(lr, loss) for lr, loss in ((0.1, 2.0), (0.01, 0.5), (0.001, 1.0), (1.0, None))]
    found = recorded([*rows, tuned(0.3, 0.1, labels=80), make_row(lr=0.01)])
    curve = summaries.tuning_curve(found, "a")
    assert curve == {0.001: 1.0, 0.01: 0.5, 0.1: 2.0, 1.0: math.inf}
    assert list(curve) == sorted(curve) and best_rate(found.rows, "a", 40) == 0.01
    assert list(summaries.tuning_curve(found, "a", 80)) == [0.3]
    with pytest.raises(ValueError, match="no tuning runs of 'b' with 40 labels"):
        summaries.tuning_curve(found, "b")
    (line,) = summaries.table(found).splitlines()[1:]
    assert line.split() == ["a", "10", "50.0", "1.000", "0.500", "0.01"]
    assert summaries.table(found, arms=["b"]).splitlines()[1:] == []


def test_rows_beside_an_arm_are_no_arms():
    beside = [make_row("a, sheet 3", kind="sheet"), make_row("a, printed", kind="aside")]
    (one,) = summaries.summarise(recorded([make_row(), *beside]))
    assert one.arm == "a" and one.train_loss == 0.5


def test_differences_by_sheet_by_hand():
    rows = []
    for arm, of in (("a", (0.8, 0.6, 0.7)), ("b", (0.5, 0.5, 0.5))):
        for seed in (0, 1):
            rows.append(make_row(arm, seed, sum(of) / 3 + seed / 10))
            rows += [
                make_row(f"{arm}, sheet {8 + k}", seed, value + seed / 10, kind="sheet")
                for k, value in enumerate(of)
            ]
    found = recorded(rows)
    # differences 0.3, 0.1, 0.2 around 0.2: twice as far from it
    assert summaries.by_sheet(found, "a", "b") == pytest.approx({8: 0.4, 9: 0.0, 10: 0.2})
    over = summaries.paired_by_sheet(found, "a", "b")
    assert over.mean == pytest.approx(0.2) and over.seeds == 3
    assert over.high - over.mean == pytest.approx(4.3027 * 0.2 / math.sqrt(3), rel=1e-4)
