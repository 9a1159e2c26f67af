"""Real processes, really killed: the same command goes on, repeats little, and ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nnicompress
from nnicompress.report.record import Report

REPOSITORY = Path(nnicompress.__file__).resolve().parents[1]
SAVE_EVERY = 10
MODULE = """
import os
from torch import nn
from torch.utils.data import DataLoader
from nnicompress.data import digits

def step(batch, model):
    images, labels = batch
    loss = nn.functional.cross_entropy(model(images), labels)
    if loss.requires_grad:
        with open(os.environ["STEPS"], "a") as log:
            log.write("step\\n")
    return loss


class Digits(digits.Digits):  # read by processes of their own
    def train_loader(self, seed):
        loader = super().train_loader(seed)
        return DataLoader(
            loader.dataset, loader.batch_size, sampler=loader.sampler, collate_fn=loader.collate_fn, num_workers=2
        )
"""
RECIPE = f"""\
# Everything that can be killed: training, a gradual pruner, shrink, fine-tuning, export
defaults:
  - override /model: resnet20
  - override /data: digits
  - override /optimizer: sgd
  - override /scheduler: onecycle
  - override /compressor: l1
model: {{width: 8}}
evaluator: {{training_step: counted.step}}
save_every: {SAVE_EVERY}
compressor:
  schedule: {{name: agp, total_times: 3, interval_steps: 60}}
  targets: {{convs: {{op_types: [Conv2d], sparse_ratio: 0.4}}}}
stages:
  train: {{max_epochs: 12}}
  prune: {{}}
  shrink: {{recalibrate_batches: 2}}
  finetune: {{max_epochs: 8}}
  export: {{formats: [pt2]}}
  evaluate: {{repeats: 3, seconds: 0.05, memory: false}}
"""
TRAINING = f"""\
# A training alone
defaults:
  - override /model: resnet20
  - override /data: digits
  - override /optimizer: sgd
  - override /scheduler: onecycle
model: {{width: 8}}
evaluator: {{training_step: counted.step}}
save_every: {SAVE_EVERY}
stages:
  train: {{max_epochs: 12}}
"""
STEPS = 12 * 20 + 2 * 60 + 8 * 20
COMMAND = [sys.executable, "-m", "nnicompress", "run"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "counted.py").write_text(MODULE)
    (tmp_path / "killed.yaml").write_text(RECIPE)
    (tmp_path / "training.yaml").write_text(TRAINING)
    return tmp_path


def start(folder: Path, run: str, recipe: str = "killed.yaml") -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "STEPS": str(folder / f"{run}.steps"),
    }
    return subprocess.Popen(
        [*COMMAND, recipe, f"run_dir={run}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


def status(run: Path) -> dict[str, object]:
    try:
        content: dict[str, object] = json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "none", "stage": ""}
    return content


def steps_of(folder: Path, run: str) -> int:
    log = folder / f"{run}.steps"
    return len(log.read_text().splitlines()) if log.exists() else 0


def assert_same_result(one: Path, other: Path) -> None:
    """Weights, masks and metrics, bit for bit."""
    files = sorted(path.relative_to(one) for path in one.glob("stages/*/*.safetensors"))
    assert len(files) == 5 and files == sorted(path.relative_to(other) for path in other.glob("stages/*/*.safetensors"))
    for file in files:
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys(), file
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    a, b = Report.load(one), Report.load(other)
    assert [(p.name, p.accuracy, p.validation) for p in a.phases] == [
        (p.name, p.accuracy, p.validation) for p in b.phases
    ]
    assert a.curves == b.curves and a.layers == b.layers
    assert [x.accuracy for x in a.artifacts] == [x.accuracy for x in b.artifacts]


LENGTHS = {"train": 24, "prune": 20, "shrink": 0.06, "finetune": 24, "export": 0.5}
"""For the random points: at most so many steps, or seconds, of the stage before the kill; the stage takes longer."""


def kill_at(folder: Path, run: str, stage: str, draw: random.Random) -> str | None:
    """Start the run, kill it at a random point of `stage`; the stage it was in, None where it was done before."""
    process = start(folder, run)
    mine = {"state": "running", "stage": stage, "pid": process.pid}
    while process.poll() is None and not mine.items() <= status(folder / run).items():
        time.sleep(0.002)
    length = LENGTHS[stage]
    if isinstance(length, int):
        target = steps_of(folder, run) + draw.randint(1, length)
        while process.poll() is None and steps_of(folder, run) < target:
            time.sleep(0.001)
        length = 0.02
    time.sleep(draw.uniform(0, length))
    process.send_signal(signal.SIGKILL)
    code = process.wait(60)
    assert process.stderr is not None
    process.stderr.close()
    return str(status(folder / run)["stage"]) if code == -signal.SIGKILL else None


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(folder: Path) -> None:
    finish(start(folder, "whole"))
    assert steps_of(folder, "whole") == STEPS
    draw, killed = random.Random(7), Counter[str]()
    for stage in (name for name in LENGTHS for _ in range(4)):
        killed[str(kill_at(folder, "killed", stage, draw))] += 1
    errors = finish(start(folder, "killed"))
    # A short stage may be over before the signal arrives; then it was the next one.
    assert killed["train"] == killed["prune"] == killed["finetune"] == 4, killed
    assert sum(killed.values()) - killed["None"] == 20 and killed["shrink"] and killed["export"], killed
    assert_same_result(folder / "whole", folder / "killed")
    # A training repeats at most one save interval a kill, and has not started over: that would be hundreds of steps.
    trained = sum(killed[name] for name in ("train", "prune", "finetune"))
    assert STEPS <= steps_of(folder, "killed") <= STEPS + SAVE_EVERY * trained
    assert "train: reused" in errors


def test_a_killed_training_goes_on_where_it_was_saved_and_not_from_its_beginning(folder: Path) -> None:
    process = start(folder, "killed", "training.yaml")
    while process.poll() is None and not (folder / "killed/stages/.01_train.partial/progress.pt").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = steps_of(folder, "killed")
    assert SAVE_EVERY <= before < 12 * 20, "it was killed inside the training"
    errors = finish(start(folder, "killed", "training.yaml"))
    saved = int(errors.partition("goes on after step ")[2].split()[0])
    assert before - SAVE_EVERY <= saved <= before and saved % SAVE_EVERY == 0
    assert 12 * 20 <= steps_of(folder, "killed") <= 12 * 20 + SAVE_EVERY
    finish(start(folder, "whole", "training.yaml"))
    one, other = (load_file(folder / run / "stages/01_train/model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [False, True])
def test_ctrl_c_saves_and_says_how_to_go_on(folder: Path, workers: bool) -> None:
    if workers:
        text = (folder / "training.yaml").read_text()
        (folder / "training.yaml").write_text(
            text + "data: {_target_: counted.Digits, batch_size: 64, num_classes: 10, in_channels: 1, image_size: 8}\n"
        )
    process = start(folder, "run", "training.yaml")
    while process.poll() is None and not (folder / "run.steps").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    errors = finish(process, 130)
    last = errors.splitlines()[-1]
    assert last == "interrupted in stage 'train'; run the same command again: it goes on from the last saved state"
    assert (status(folder / "run")["state"], status(folder / "run")["stage"]) == ("interrupted", "train")
    done = steps_of(folder, "run")
    again = start(folder, "run", "training.yaml")
    assert f"goes on after step {done}\n" in finish(again), "not a step is repeated"
    assert steps_of(folder, "run") == 12 * 20
