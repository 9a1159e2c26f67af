"""Pruners that learn or go back while they train, really killed in those trainings: they end with the same bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nnicompress.report.record import Report
from tests.pipeline.test_kill import MODULE, finish, start, status, steps_of

SAVE_EVERY, KILLS = 5, 4
RECIPE = """\
# A pruner to be killed, at a rate of its own
defaults:
  - override /model: {model}
  - override /data: digits
  - override /optimizer: sgd
  - override /scheduler: onecycle
  - override /compressor: {preset}
model: {{{settings}}}
evaluator: {{training_step: counted.step}}
save_every: {save_every}
compressor: {compressor}
stages:
  train: {{max_steps: 12}}
  prune: {{optimizer: {{lr: 0.02}}}}
  finetune: {{max_steps: 12}}
  export: {{formats: []}}
  evaluate: {{repeats: 3, seconds: 0.01, memory: false, batch_sizes: [1]}}
"""
MLP = ("mlp", "hidden: [32]")
PRUNERS = {
    # Weights behind masks and their scores are kept beside the model.
    "movement": (
        *MLP,
        "{importance: {training_steps: 24}, schedule: {total_times: 5, interval_steps: 16}, "
        "targets: {weights: {sparse_ratio: 0.6}}}",
        24 + 4 * 16,
    ),
    "soft_movement": (
        *MLP,
        "{importance: {training_steps: 24, score_rate: 50.0}, schedule: {total_times: 5, interval_steps: 16}, "
        "targets: {weights: {sparse_threshold: 0.5}}}",
        24 + 4 * 16,
    ),
    # A penalty beside the loss, in the first training and between the removals.
    "slim": (
        "resnet20",
        "width: 4",
        "{importance: {training_steps: 30, regular_scale: 1.0e-3}, "
        "schedule: {name: agp, total_times: 3, interval_steps: 25}}",
        30 + 2 * 25,
    ),
    # The weights to go back to are those of the stage's beginning, not of where a killed run goes on.
    "lottery_ticket": (
        *MLP,
        "{schedule: {total_times: 4, interval_steps: 20}, targets: {weights: {op_types: [Linear]}}}",
        4 * 20,
    ),
}


def kill(folder: Path, steps: int) -> None:
    """Start the run and kill it when it has made so many more steps in the stage `prune`."""
    process = start(folder, "killed")
    mine = {"state": "running", "stage": "prune", "pid": process.pid}
    while process.poll() is None and not mine.items() <= status(folder / "killed").items():
        time.sleep(0.002)
    target = steps_of(folder, "killed") + steps
    while process.poll() is None and steps_of(folder, "killed") < target:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    assert status(folder / "killed")["stage"] == "prune", "it was killed inside the pruner"


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRUNERS)
def test_a_pruner_that_is_killed_four_times_ends_with_the_same_bits(preset: str, tmp_path: Path) -> None:
    model, settings, compressor, of_pruner = PRUNERS[preset]
    (tmp_path / "counted.py").write_text(MODULE)
    (tmp_path / "killed.yaml").write_text(
        RECIPE.format(model=model, settings=settings, preset=preset, compressor=compressor, save_every=SAVE_EVERY)
    )
    finish(start(tmp_path, "whole"))
    whole = steps_of(tmp_path, "whole")
    assert whole >= 12 + of_pruner + 12
    draw = random.Random(preset)
    for _ in range(KILLS):
        kill(tmp_path, draw.randint(SAVE_EVERY + 4, 16))
    errors = finish(start(tmp_path, "killed"))
    assert "train: reused" in errors and "goes on after step " in errors
    # Each kill repeats at most a save interval, and a step or two of looking at the example inputs.
    assert steps_of(tmp_path, "killed") <= whole + KILLS * (SAVE_EVERY + 4)
    one, other = tmp_path / "whole", tmp_path / "killed"
    files = sorted(path.relative_to(one) for path in one.glob("**/*.safetensors"))
    assert len(files) >= 5 and files == sorted(path.relative_to(other) for path in other.glob("**/*.safetensors"))
    for file in files:
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), file
    a, b = Report.load(one), Report.load(other)
    assert [(p.name, p.accuracy, p.zeros) for p in a.phases] == [(p.name, p.accuracy, p.zeros) for p in b.phases]
    assert a.phases[1].zeros > 0 and a.curves == b.curves and a.layers == b.layers
