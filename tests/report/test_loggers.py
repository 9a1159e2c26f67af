"""Logs of a training: what is in the files, and what a killed and continued run leaves there."""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from nnicompress.checks.recipe import check_recipe
from nnicompress.config.compose import compose
from nnicompress.config.resolve import resolve
from nnicompress.config.schema import HeadSettings, validate
from nnicompress.data.digits import Digits
from nnicompress.errors import ConfigError, InputErrors
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import (
    EpochDone,
    Event,
    StageFinished,
    StageResumed,
    StageStarted,
    StepDone,
    TrainingFinished,
    TrainingStarted,
)
from nnicompress.factory import build_job
from nnicompress.models.mlp import mlp
from nnicompress.report.loggers import LOGGERS, open_loggers
from nnicompress.trace import Traced

BOTH = ("csv", "tensorboard")


class Killed(BaseException):
    """The process ends here."""


def training(first: int, last: int, *, epoch_of: int = 4, scale: float = 1.0) -> list[Event]:
    """Steps `first` ... `last` of a training, four steps an epoch, a metric after each."""
    events: list[Event] = [TrainingStarted(last)]
    if first % epoch_of == 1 and first > 1:
        events.append(EpochDone((first - 1) // epoch_of, {"default": (first - 1) / 100}))
    for step in range(first, last + 1):
        events.append(StepDone(step, scale / step, 0.5, step / epoch_of))
        if step % epoch_of == 0:
            events.append(EpochDone(step // epoch_of, {"default": step / 100}))
    return [*events, TrainingFinished(last)]


def play(folder: Path, *events: list[Event] | Event, names: tuple[str, ...] = BOTH) -> None:
    with open_loggers(names, folder) as listeners:
        for group in events:
            for event in group if isinstance(group, list) else [group]:
                for listener in listeners:
                    listener(event)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path, stage: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["loss"])) for row in rows(folder) if row["stage"] == stage and row["loss"]]


def metrics(folder: Path, stage: str) -> list[tuple[int, float]]:
    kept = [row for row in rows(folder) if row["stage"] == stage and not row["loss"]]
    return [(int(row["step"]), float(row["validation_default"])) for row in kept]


def scalars(folder: Path, stage: str, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself shows of one curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "tensorboard" / stage), size_guidance={"scalars": 0})
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(tag)]


def near(found: list[tuple[int, float]]) -> Any:
    """TensorBoard keeps 32 bits of a number."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in found]


def test_both_logs_hold_every_step_and_every_metric(tmp_path: Path) -> None:
    play(tmp_path, StageStarted("train", 1, 2), training(1, 8), StageFinished("train", 1.0))
    assert list(rows(tmp_path)[0]) == ["stage", "step", "epoch", "loss", "learning_rate", "validation_default"]
    assert losses(tmp_path, "train") == [(step, 1 / step) for step in range(1, 9)]
    assert metrics(tmp_path, "train") == [(4, 0.04), (8, 0.08)]
    assert rows(tmp_path)[4] == {
        "stage": "train",
        "step": "4",
        "epoch": "1",
        "loss": "",
        "learning_rate": "",
        "validation_default": "0.04",
    }
    assert scalars(tmp_path, "train", "loss") == near(losses(tmp_path, "train"))
    assert scalars(tmp_path, "train", "validation/default") == near([(4, 0.04), (8, 0.08)])
    assert scalars(tmp_path, "train", "learning_rate") == [(step, 0.5) for step in range(1, 9)]


@pytest.mark.parametrize("told", [True, False], ids=["with StageResumed", "without"])
@pytest.mark.parametrize("saved", [5, 8])
def test_steps_that_a_resumed_run_repeats_are_there_once(tmp_path: Path, saved: int, told: bool) -> None:
    """Saved after step `saved`, killed after step 10: the repeated steps have other numbers here, to be told apart."""
    play(tmp_path, StageStarted("train", 1, 2), training(1, 10)[:-1])
    resumed: list[Event] = [StageResumed(saved)] if told else []
    play(tmp_path, StageStarted("train", 1, 2), resumed, training(saved + 1, 12, scale=2.0))
    expected = [(step, (1.0 if step <= saved else 2.0) / step) for step in range(1, 13)]
    assert losses(tmp_path, "train") == expected
    assert metrics(tmp_path, "train") == [(4, 0.04), (8, 0.08), (12, 0.12)]
    assert scalars(tmp_path, "train", "loss") == near(expected)
    shown = scalars(tmp_path, "train", "validation/default")
    assert sorted(set(shown)) == near([(4, 0.04), (8, 0.08), (12, 0.12)])


def test_a_stage_s_trainings_are_one_curve_and_resume_in_the_right_one(tmp_path: Path) -> None:
    """Three trainings of four steps; saved after the sixth step of the stage, killed in the third training."""
    play(tmp_path, StageStarted("prune", 1, 1), training(1, 4), training(1, 4), training(1, 4)[:3])
    assert [step for step, _ in losses(tmp_path, "prune")] == [*range(1, 11)]
    play(tmp_path, StageStarted("prune", 1, 1), StageResumed(6), training(3, 4, scale=2.0), training(1, 4, scale=2.0))
    expected = [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (5, 1.0), (6, 1 / 2), (7, 2 / 3), (8, 2 / 4)]
    expected += [(9, 2.0), (10, 1.0), (11, 2 / 3), (12, 2 / 4)]
    assert losses(tmp_path, "prune") == expected
    assert metrics(tmp_path, "prune") == [(4, 0.04), (8, 0.04), (12, 0.04)]
    assert scalars(tmp_path, "prune", "loss") == near(expected)


def test_a_run_saved_at_the_last_step_adds_only_the_metrics(tmp_path: Path) -> None:
    play(tmp_path, StageStarted("train", 1, 1), training(1, 8)[:-2])
    end: list[Event] = [TrainingStarted(8), EpochDone(2, {"default": 0.08}), TrainingFinished(8)]
    play(tmp_path, StageStarted("train", 1, 1), StageResumed(8), end)
    assert losses(tmp_path, "train") == [(step, 1 / step) for step in range(1, 9)]
    assert metrics(tmp_path, "train") == [(4, 0.04), (8, 0.08)]
    assert scalars(tmp_path, "train", "validation/default") == near([(4, 0.04), (8, 0.08)])


def test_a_stage_from_its_start_begins_anew_and_earlier_stages_stay(tmp_path: Path) -> None:
    train: list[Event] = [StageStarted("train", 1, 3), *training(1, 4)]
    finetune: list[Event] = [StageStarted("finetune", 2, 3), *training(1, 4), StageStarted("quantize", 3, 3)]
    play(tmp_path, train, finetune, training(1, 4))
    play(tmp_path, StageStarted("finetune", 2, 3), training(1, 2, scale=3.0), StageStarted("evaluate", 3, 3))
    assert losses(tmp_path, "train") == [(step, 1 / step) for step in range(1, 5)]
    assert losses(tmp_path, "finetune") == [(1, 3.0), (2, 1.5)]
    assert losses(tmp_path, "quantize") == [], "it came after"
    assert scalars(tmp_path, "finetune", "loss") == near([(1, 3.0), (2, 1.5)])
    assert scalars(tmp_path, "train", "loss") == near(losses(tmp_path, "train"))


def test_half_a_row_of_a_killed_process_goes(tmp_path: Path) -> None:
    play(tmp_path, StageStarted("train", 1, 1), training(1, 3)[:-1], names=("csv",))
    with (tmp_path / "logs" / "metrics.csv").open("a") as file:
        file.write("train,4,1.0,0.2")
    play(tmp_path, StageStarted("train", 1, 1), training(4, 5), names=("csv",))
    assert losses(tmp_path, "train") == [(step, 1 / step) for step in range(1, 6)]


def test_each_row_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    with open_loggers(["csv"], tmp_path) as (listener,):
        for event in (StageStarted("train", 1, 1), TrainingStarted(2), StepDone(1, 0.5, 0.1)):
            listener(event)
        assert losses(tmp_path, "train") == [(1, 0.5)]


def test_metrics_that_come_later_get_their_columns(tmp_path: Path) -> None:
    events: list[Event] = [StageStarted("train", 1, 1), TrainingStarted(3), StepDone(1, 0.5, 0.1)]
    events += [EpochDone(1, {"default": 0.5}), StepDone(2, 0.25, 0.1), EpochDone(2, {"loss": 0.1, "default": 0.75})]
    play(tmp_path, events, EpochDone(3), names=("csv",))
    found = [(row["loss"], row["validation_default"], row["validation_loss"]) for row in rows(tmp_path)]
    assert found == [("0.5", "", ""), ("", "0.5", ""), ("0.25", "", ""), ("", "0.75", "0.1")]


def test_no_loggers_write_nothing(tmp_path: Path) -> None:
    play(tmp_path, StageStarted("train", 1, 1), training(1, 2), names=())
    assert list(tmp_path.iterdir()) == []


def train(folder: Path, weights: Any, state: Any = None, *, kill_after: int | None = None) -> dict[str, Any]:
    """Three epochs on the digits, logged; killed two steps after step `kill_after`, whose state is returned."""
    torch.manual_seed(1)
    model, data, saved = mlp(in_channels=1, image_size=8, num_classes=10), Digits(batch_size=256), dict[str, Any]()
    model.load_state_dict(weights)
    with open_loggers(BOTH, folder) as listeners:

        def hear(event: Event) -> None:
            for listener in listeners:
                listener(event)
            if isinstance(event, StepDone) and event.step == kill_after:
                saved["state"] = copy.deepcopy(evaluator.state_dict())  # as on disk
                saved["weights"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if isinstance(event, StepDone) and kill_after is not None and event.step == kill_after + 2:
                raise Killed

        evaluator = TorchEvaluator(
            TrainingLoop(data.train_loader, seed=0),
            Traced(torch.optim.SGD, (list(model.parameters()),), {"lr": 0.1, "momentum": 0.9}),
            SupervisedStep(nn.CrossEntropyLoss()),
            evaluating_func=Evaluation(
                {"validation": data.validation_loader, "test": data.test_loader},
                Traced(MulticlassAccuracy, (), {"num_classes": 10, "average": "micro"}),
            ),
            listener=hear,
        )
        hear(StageStarted("train", 1, 1))
        with evaluator.bound(model), contextlib.suppress(Killed):
            if state is not None:
                evaluator.load_state_dict(state)
            evaluator.train(max_epochs=3)
    return saved


@pytest.mark.parametrize("saved_at", [3, 5], ids=["within an epoch", "at an epoch's last step"])
def test_a_real_training_killed_and_continued_logs_what_an_uninterrupted_one_does(
    tmp_path: Path, saved_at: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = mlp(in_channels=1, image_size=8, num_classes=10).state_dict()
    train(whole, start)
    saved = train(killed, start, kill_after=saved_at)
    assert losses(killed, "train") == losses(whole, "train")[: saved_at + 2]
    train(killed, saved["weights"], saved["state"])
    assert rows(killed) == rows(whole)
    assert len(losses(whole, "train")) == 15 and len(metrics(whole, "train")) == 3
    for tag in ("loss", "learning_rate"):
        assert scalars(killed, "train", tag) == scalars(whole, "train", tag)
    assert sorted(set(scalars(killed, "train", "validation/default"))) == scalars(whole, "train", "validation/default")


def test_the_key_of_a_recipe_reaches_the_job_and_changes_no_folder() -> None:
    plain, logged = (compose(["recipe=level_mlp", *more]) for more in ([], ["logging=[csv,tensorboard]"]))
    assert plain.run_dir == logged.run_dir
    assert validate(resolve(plain)).head.logging == ()
    assert build_job(plain).logging == () and build_job(logged).logging == BOTH
    assert set(get_args(get_args(HeadSettings.model_fields["logging"].annotation)[0])) == set(LOGGERS)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("logging=[cvs]", "logging.0: 'cvs' is not 'csv' or 'tensorboard'; did you mean 'csv'?"),
        ("logging=csv", "logging: 'csv' is not a list; write [csv]"),
        ("logging=[csv,csv]", "logging: 'csv' stands in the list twice"),
        ("logging=null", "logging: null is not a list"),
    ],
)
def test_wrong_values_are_told(override: str, told: str) -> None:
    with pytest.raises(InputErrors) as caught:
        validate(resolve(compose(["recipe=level_mlp", override])))
    assert str(caught.value) == told


def test_a_missing_package_is_told_by_check_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    told = "tensorboard needs tensorboard, which is not installed: pip install 'nnicompress[logging]'"
    with pytest.raises(InputErrors, match="tensorboard") as caught:
        check_recipe(["recipe=level_mlp", "logging=[csv,tensorboard]", f"run_dir={tmp_path / 'run'}"])
    assert str(caught.value) == f"logging: {told} (command line)"
    with pytest.raises(ConfigError), open_loggers(BOTH, tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    check_recipe(["recipe=level_mlp", "logging=[csv]", f"run_dir={tmp_path / 'run'}"])


@pytest.mark.slow
def test_a_run_killed_for_real_logs_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """SIGKILL, in the middle of an iterative pruning whose trainings are shorter than the steps between two saves."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(
        "defaults: [override /model: mlp, override /compressor: level]\n"
        "logging: [csv, tensorboard]\n"
        "save_every: 7\n"
        "compressor:\n"
        "  targets: {weights: {op_types: [Linear], sparse_ratio: 0.5}}\n"
        "  schedule: {name: linear, total_times: 40, interval_steps: 5}\n"
        "stages:\n"
        "  train: {max_epochs: 2}\n"
        "  prune: {}\n"
        "  evaluate: {repeats: 3, seconds: 0.01, memory: false, batch_sizes: [1]}\n"
    )
    command = [sys.executable, "-m", "nnicompress", "run", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, f"run_dir={folder}"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )

    assert start("whole").wait(timeout=200) == 0
    killed, log = start("killed"), tmp_path / "killed" / "logs" / "metrics.csv"
    while killed.poll() is None and not (log.exists() and log.read_text().count("\nprune,") >= 30):
        time.sleep(0.005)
    assert killed.poll() is None, "it ended before it could be killed"
    killed.kill()
    killed.wait()
    assert 30 <= len(losses(tmp_path / "killed", "prune")) < 195
    assert start("killed").wait(timeout=200) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole", "prune")] == [*range(1, 39 * 5 + 1)]
    shown = scalars(tmp_path / "killed", "prune", "loss")
    assert shown == [item for item in scalars(tmp_path / "whole", "prune", "loss") if item in shown]
    assert len(shown) >= 195 - 30, "a killed process loses at most a second of its event file"
