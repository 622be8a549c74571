"""Settings for every test: one thread, fixed seeds, and hypothesis without clocks."""

import os

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
