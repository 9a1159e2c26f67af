"""Quantizers that are really killed in their training: the same command ends with the same ranges and integers."""

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

SAVE_EVERY, EPOCHS = 5, 4
RECIPE = """\
# A quantizer to be killed, its ranges and switches changing as it trains
defaults:
  - override /model: resnet20
  - override /data: digits
  - override /optimizer: sgd
  - override /scheduler: onecycle
  - override /compressor: {preset}
model: {{width: 4}}
evaluator: {{training_step: counted.step}}
save_every: {save_every}
compressor: {{calibration_steps: 2, schedule: {schedule}}}
stages:
  train: {{max_steps: 10}}
  quantize: {{max_epochs: {epochs}, optimizer: {{lr: 0.02}}}}
  export: {{formats: []}}
  evaluate: {{repeats: 3, seconds: 0.01, memory: false, batch_sizes: [1]}}
"""
SCHEDULES = {
    "qat": "{simulate_from: 12, observe_until: 50, freeze_batch_norm_at: 60}",
    "lsq": "{simulate_from: 12, freeze_batch_norm_at: 60}",
}


def kill(folder: Path, steps: int) -> bool:
    """Start the run and kill it when it has made so many more steps of the quantizer's training; False: it was done."""
    process = start(folder, "killed")
    mine = {"state": "running", "stage": "quantize", "pid": process.pid}
    while process.poll() is None and not mine.items() <= status(folder / "killed").items():
        time.sleep(0.002)
    target = steps_of(folder, "killed") + steps
    while process.poll() is None and steps_of(folder, "killed") < target:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    code = process.wait(60)
    assert process.stderr is not None
    process.stderr.close()
    return code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("preset", SCHEDULES)
def test_a_quantizer_that_is_killed_five_times_ends_with_the_same_bits(preset: str, tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(MODULE)
    (tmp_path / "killed.yaml").write_text(
        RECIPE.format(preset=preset, save_every=SAVE_EVERY, epochs=EPOCHS, schedule=SCHEDULES[preset])
    )
    finish(start(tmp_path, "whole"))
    whole = steps_of(tmp_path, "whole")
    draw, kills = random.Random(11), 5
    # The calibration runs forwards of the counted step, too: a kill may fall into it.
    for _ in range(kills):
        assert kill(tmp_path, draw.randint(1, 20)), "the training is longer than all kills together"
    errors = finish(start(tmp_path, "killed"))
    assert "train: reused" in errors and "goes on after step " in errors
    # Each start may calibrate again before it has saved, and repeats at most a save interval.
    assert whole <= steps_of(tmp_path, "killed") <= whole + kills * (SAVE_EVERY + 4)
    one, other = tmp_path / "whole", tmp_path / "killed"
    for file in (
        "stages/02_quantize/quantization.safetensors",
        "stages/02_quantize/model.safetensors",
        "model/model.safetensors",
    ):
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), file
    a, b = Report.load(one), Report.load(other)
    assert [(p.name, p.accuracy) for p in a.phases] == [(p.name, p.accuracy) for p in b.phases]
    assert a.curves == b.curves
