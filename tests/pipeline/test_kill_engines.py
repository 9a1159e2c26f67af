"""Runs of a Lightning and of a Transformers recipe, really killed ten times each: they end with the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.pipeline.test_kill import assert_same_result, finish, start, status, steps_of

SAVE_EVERY = 4
MODULE = """
import os

import torch
from torch import nn
from transformers import Trainer

from nnicompress.evaluators.lightning.classifier import Classifier


def count():
    with open(os.environ["STEPS"], "a") as log:
        log.write("step\\n")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(64, 10)

    def forward(self, pixel_values, labels=None):
        x = torch.relu(self.norm(self.conv1(pixel_values)))
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        logits = self.head(self.dropout(x))
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Counted(Classifier):
    def training_step(self, batch, batch_idx):
        count()
        return super().training_step(batch, batch_idx)


class CountedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **more):
        if model.training:
            count()
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
"""
ENGINES = {
    "lightning": """\
  - override /optimizer: sgd
  - override /scheduler: onecycle
  - override /evaluator: lightning
evaluator: {module: {_target_: counted.Counted}}
""",
    "transformers": """\
  - override /evaluator: transformers
evaluator:
  trainer: {_target_: counted.CountedTrainer}
  args: {learning_rate: 3.0e-3}
  compute_metrics:
    _target_: nnicompress.evaluators.transformers.data.default_metrics
    metric: {_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10, average: micro}
""",
}
RECIPE = """\
# A run of another engine, to be killed
defaults:
  - override /compressor: l1
{engine}
model: {{_target_: counted.Net}}
save_every: {save_every}
compressor:
  schedule: {{name: agp, total_times: 3, interval_steps: 30}}
  targets: {{convs: {{op_types: [Conv2d], sparse_ratio: 0.4}}}}
stages:
  train: {{max_epochs: 5}}
  prune: {{}}
  shrink: {{}}
  finetune: {{max_epochs: 3}}
  export: {{formats: [pt2]}}
  evaluate: {{repeats: 3, seconds: 0.05, memory: false}}
"""
PLACES = ["train", "prune", "finetune", "train", "finetune", "prune", "train", "prune", "finetune", "train"]


def kill_inside(folder: Path, run: str, stage: str, draw: random.Random) -> str:
    """Start the run, kill it at a random step of `stage`, inside one, or between; the stage that it was in."""
    process = start(folder, run)
    mine = {"state": "running", "stage": stage, "pid": process.pid}
    while process.poll() is None and not mine.items() <= status(folder / run).items():
        time.sleep(0.002)
    target = steps_of(folder, run) + draw.randint(1, 12)
    while process.poll() is None and steps_of(folder, run) < target:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    return str(status(folder / run)["stage"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_killed_ten_times_ends_with_the_same_bits(engine: str, tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(MODULE)
    recipe = RECIPE.format(engine=ENGINES[engine].rstrip(), save_every=SAVE_EVERY)
    # The defaults list goes on with the engine's options; the rest of its text are settings.
    (tmp_path / "killed.yaml").write_text(recipe)
    finish(start(tmp_path, "whole"))
    steps = steps_of(tmp_path, "whole")
    draw, killed = random.Random(11), Counter[str]()
    for stage in sorted(PLACES, key=["train", "prune", "finetune"].index):
        killed[kill_inside(tmp_path, "killed", stage, draw)] += 1
    errors = finish(start(tmp_path, "killed"))
    assert killed == Counter(PLACES), killed
    assert_same_result(tmp_path / "whole", tmp_path / "killed")
    assert "train: reused" in errors and "goes on after step" in errors
    # Each kill repeats at most what was done since the last save, and example inputs are drawn once a stage.
    assert steps <= steps_of(tmp_path, "killed") <= steps + 10 * (SAVE_EVERY + 6)
