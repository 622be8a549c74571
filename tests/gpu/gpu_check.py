"""``make gpu-check``: are the numbers right on this machine's CUDA card? Under a minute."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


def main() -> int:
    """Run the tests beside this file on a card; 0 where they pass, or where there is none."""
    if not torch.cuda.is_available():
        print("gpu-check is skipped: torch finds no CUDA card on this machine.")
        return 0
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    here = Path(__file__).parent
    return int(pytest.main(["-q", "--durations=5", "-p", "no:cacheprovider", str(here)]))


if __name__ == "__main__":
    sys.exit(main())
