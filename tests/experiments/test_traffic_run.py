"""The traffic experiment: what was predicted is what two processes exchange."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from minilora.experiments import traffic
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import quantities
from minilora.experiments.traffic import figures
from minilora.experiments.traffic.arms import build
from minilora.lab import traffic as traffic_bytes
from minilora.lab.traffic import loopback_bytes

EXCHANGES = ("summed", "gathered", "scattered")


@pytest.fixture(scope="module")
def found() -> Recording:
    return traffic.run("smoke")


@pytest.mark.parametrize("arm", traffic.ARMS, ids=lambda arm: arm.name)
@pytest.mark.parametrize("what", EXCHANGES)
def test_what_is_exchanged_was_predicted_to_the_byte(
    found: Recording, arm: traffic.Sharing, what: str
) -> None:
    (one,) = quantities(found, what, arm.name)
    assert one.measured == one.predicted


def test_the_loopback_carries_it(found: Recording) -> None:
    if loopback_bytes() is None:
        pytest.skip("bytes over the loopback cannot be counted here")
    for arm in traffic.ARMS:
        for one in quantities(found, "sent", arm.name):
            assert one.predicted is not None
            assert 0.97 < one.measured / one.predicted < 1.2, arm.name


def test_the_figures_can_be_drawn(found: Recording) -> None:
    names = [arm.name for arm in traffic.ARMS]
    expected = {arm.name: traffic.predicted(arm, build(arm, 2)) for arm in traffic.ARMS}
    figure, axes = plt.subplots(3)
    figures.draw_sent(axes[0], found, names, expected, 2)
    arms = {name: (1.0, 1e9, 0.5) for name, *_ in figures.LABELS}
    figures.draw_links(axes[1:], arms, 8)
    assert len(axes[0].get_yticklabels()) == len(names)
    assert [ax.get_title() for ax in axes[1:]] == ["everything", "adapter"]
    plt.close(figure)


def test_sending_hides_behind_its_share_of_the_work_only() -> None:
    """Seconds: 2 of work, and 1 or 3 of sending."""
    assert figures.soonest(2.0, 100, 100, 0) == traffic_bytes.step_seconds(2.0, 100, 100) == 3.0
    assert figures.soonest(2.0, 100, 100, 0.5) == 2.0
    assert figures.soonest(2.0, 300, 100, 0.5) == 4.0
    whole = traffic_bytes.step_seconds(2.0, 300, 100, overlap=True)
    assert figures.soonest(2.0, 300, 100, 1) == whole == 3.0
