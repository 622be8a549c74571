"""Settings for every test: one thread, fixed seeds, and hypothesis without clocks."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", deadline=None, suppress_health_check=_slow_is_fine)
settings.register_profile(
    "ci", deadline=None, suppress_health_check=_slow_is_fine, derandomize=True, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Small matrices gain nothing from threads, and xdist's workers share the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache of base models, and no folder for the runs of pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MINILORA_RUNS", raising=False)
        yield
