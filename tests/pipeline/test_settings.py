"""Stage settings and the rules of the stages' order."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from nnicompress.pipeline.settings import (
    ORDER,
    STAGES,
    RuntimeSettings,
    TrainSettings,
    order_errors,
)
from nnicompress.report.settings import Bounds, ExpectedSettings

WHOLE = ["train", "prune", "shrink", "finetune", "export", "evaluate"]


def test_every_stage_has_settings_and_a_rule() -> None:
    assert STAGES.keys() == ORDER.keys()


@pytest.mark.parametrize(
    "names",
    [
        WHOLE,
        ["start", *WHOLE[1:]],
        ["train", "prune", "finetune", "shrink", "evaluate"],
        ["train"],
        ["start", "evaluate"],
    ],
)
def test_possible_orders(names: list[str]) -> None:
    assert order_errors(names) == []


@pytest.mark.parametrize(
    ("names", "stage", "text"),
    [
        (["prun"], "prun", "did you mean 'prune'"),
        (["finetune", "train"], "finetune", "needs 'train' or 'start' before it"),
        (["finetune", "train"], "train", "must be the first stage"),
        (["train", "shrink", "prune"], "shrink", "needs 'prune'"),
        (["train", "prune", "shrink", "export", "finetune"], "finetune", "must come before 'export'"),
        (["train", "evaluate", "export"], "export", "must come before 'evaluate'"),
        (["train", "start"], "start", "must be the first stage"),
        ([], "", "at least one stage"),
    ],
)
def test_impossible_orders(names: list[str], stage: str, text: str) -> None:
    assert any(found == stage and text in message for found, message in order_errors(names))


@pytest.mark.parametrize("values", [{}, {"max_epochs": 1, "max_steps": 1}])
def test_a_training_has_exactly_one_length(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="exactly one of max_epochs and max_steps"):
        TrainSettings.model_validate(values)


def test_bounds_are_an_interval() -> None:
    with pytest.raises(ValidationError, match="min or max"):
        Bounds()
    with pytest.raises(ValidationError, match="above max"):
        ExpectedSettings.model_validate({"accuracy": {"min": 0.9, "max": 0.8}})


def test_devices_are_named_as_torch_does() -> None:
    assert RuntimeSettings(device="cuda:1").device == "cuda:1"
    with pytest.raises(ValidationError):
        RuntimeSettings(device="gpu")


def test_settings_and_jobs_import_no_torch() -> None:
    code = "import sys, nnicompress.pipeline.settings, nnicompress.pipeline.job; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
