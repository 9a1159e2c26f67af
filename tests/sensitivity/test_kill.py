"""A real analysis, really killed: the same command goes on, measures nothing twice, and ends with the same table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nnicompress

REPOSITORY = Path(nnicompress.__file__).resolve().parents[1]
MODULE = """
import os, time
import torch

def accuracy(model, data):
    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in data.validation_loader():
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    time.sleep(0.05)
    with open(os.environ["MEASURED"], "a") as log:
        log.write("measured\\n")
    return right / total
"""
RECIPE = """\
# A perceptron, briefly trained
defaults:
  - override /model: mlp
  - override /data: digits
evaluator: {evaluating_func: counted.accuracy}
stages:
  train: {max_steps: 30}
  sensitivity: {%s, mode: all_but_one}
"""
TRAINING = 1  # a measurement at its end


def start(folder: Path, settings: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "counted.py").write_text(MODULE)
    (folder / "mine.yaml").write_text(RECIPE % settings)
    return subprocess.Popen(
        [sys.executable, "-m", "nnicompress", "sensitivity", "mine.yaml", "run_dir=out"],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "MEASURED": str(folder / "measured.log"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measured(folder: Path) -> int:
    log = folder / "measured.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def finish(folder: Path, settings: str) -> tuple[str, str]:
    """The table without the folder's name, and the file."""
    process = start(folder, settings)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return printed, (folder / "out-sensitivity" / "sensitivity.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "layers"),
    [("ratios: [0.2, 0.4, 0.6, 0.8]", 2), ("kind: quantized, levels: [int8, int4, int3, int2]", 3)],
    ids=["pruned", "quantized"],
)
def test_an_analysis_that_is_killed_goes_on_and_ends_with_the_same_table(
    settings: str, layers: int, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finish(whole, settings)
    count = measured(whole)
    assert count == TRAINING + 1 + 4 + 4 * layers
    for stop_at in (4, 9):
        process = start(killed, settings)
        deadline = time.monotonic() + 120
        while measured(killed) < stop_at and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "out-sensitivity" / "sensitivity.yaml").exists()
        assert json.loads((killed / "out-sensitivity" / "status.json").read_text())["stage"] == "sensitivity"
    assert finish(killed, settings) == expected
    # A measurement may have been made and not yet stored when the process was killed.
    assert count <= measured(killed) <= count + 2
