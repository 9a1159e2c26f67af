"""Lightning and Transformers in two gloo processes, beside one process with the same global batch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nnicompress.pipeline.run_dir import read_status
from tests.distributed.launch import REPOSITORY, environment, torchrun

SCRIPT = REPOSITORY / "tests" / "distributed" / "engines_together.py"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lightning", "transformers"])
def test_two_processes_prune_as_one_and_quantize_alike(engine: str, tmp_path: Path) -> None:
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
        quantized = found["quantized"]
        assert quantized.keys() == expected["quantized"].keys() and len(quantized) > 30
        assert all(torch.equal(tensor, ranks[0]["quantized"][name]) for name, tensor in quantized.items())
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["metrics"]["default"] == pytest.approx(expected["metrics"]["default"], abs=1e-5)


DYING = """
import os
import signal
from torch import nn
from transformers import Trainer
from nnicompress.evaluators.lightning.classifier import Classifier

calls = 0


def die():
    global calls
    calls += 1
    if calls == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Dying(Classifier):
    def training_step(self, batch, batch_idx):
        die()
        return super().training_step(batch, batch_idx)


class DyingTrainer(Trainer):
    def compute_loss(self, *args, **kwargs):
        die()
        return super().compute_loss(*args, **kwargs)
"""
RECIPES = {
    "lightning": "  - override /optimizer: sgd\n  - override /scheduler: onecycle\n  - override /evaluator: lightning\n"
    "evaluator: {module: {_target_: dying.Dying}}\n",
    "transformers": "  - override /evaluator: transformers\nevaluator: {trainer: {_target_: dying.DyingTrainer}}\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", RECIPES)
def test_a_process_that_dies_fails_the_run_with_the_cause(engine: str, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    (tmp_path / "dying.yaml").write_text(
        f"# A process dies\ndefaults:\n{RECIPES[engine]}model: {{_target_: dying.Net}}\nruntime: {{device: cpu}}\n"
        "stages: {train: {max_epochs: 2}, evaluate: {}}\n"
    )
    started = time.monotonic()
    done = torchrun(tmp_path, "-m", "nnicompress", "run", "dying.yaml", "run_dir=run", "--trust", "dying")
    assert done.returncode != 0 and time.monotonic() - started < 90
    assert "process 1 was killed" in done.stderr
    status = read_status(tmp_path / "run")
    assert (status.state, status.stage) == ("failed", "train")
    assert "process 1 was killed" in str(status)
