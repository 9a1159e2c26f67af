"""Two processes are started once; all tests of what they did read what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import torchrun

Found = list[dict[str, Any]]


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two processes found in `together.py`, by case."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(folder, str(Path(__file__).with_name("together.py")), str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]
