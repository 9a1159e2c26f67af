"""Lightning and Transformers in two gloo processes, beside one process with the same global batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import REPOSITORY, environment, torchrun

SCRIPT = REPOSITORY / "tests" / "distributed" / "engines_together.py"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lightning", "transformers"])
def test_masks_of_two_processes_are_those_of_one(engine: str, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    one = subprocess.run(
        [sys.executable, str(SCRIPT), engine, str(alone)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 0, one.stderr
    two = torchrun(tmp_path, str(SCRIPT), engine, str(together))
    assert two.returncode == 0, two.stderr
    expected: dict[str, Any] = torch.load(alone / "0.pt", weights_only=True)
    ranks: list[dict[str, Any]] = [torch.load(together / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert sum(int((~keep).sum()) for keep in expected["masks"].values()) > 100
    for found in ranks:
        assert found["masks"].keys() == expected["masks"].keys()
        assert all(torch.equal(found["masks"][name], keep) for name, keep in expected["masks"].items())
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], tensor, rtol=0, atol=1e-5)
            assert torch.equal(found["weights"][name], ranks[0]["weights"][name])
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["metrics"]["default"] == pytest.approx(expected["metrics"]["default"], abs=1e-5)
