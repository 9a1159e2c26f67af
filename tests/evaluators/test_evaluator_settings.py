"""The `evaluator` group: keys, types, and that reading it loads no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from nnicompress.evaluators.settings import EvaluatorSettings


def test_a_recipes_evaluator() -> None:
    settings = EvaluatorSettings.model_validate(
        {"name": "torch", "loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "clip_norm": 1.0, "accumulate": 2}
    )
    assert settings.mode == "max" and settings.loss == {"_target_": "torch.nn.CrossEntropyLoss"}
    assert EvaluatorSettings() == EvaluatorSettings(name="torch", accumulate=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "best"}, "'min' or 'max'"),
        ({"clip_norm": 0}, "greater than 0"),
        ({"accumulate": 0}, "greater than or equal to 1"),
        ({"metrics": {}}, "Extra inputs"),
        ({"loss": {"label_smoothing": 0.1}}, "loss needs a _target_"),
        ({"training_func": "mine.loop", "clip_norm": 1.0}, "belong to the shipped loop"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluatorSettings.model_validate(values)


def test_settings_and_trace_load_no_torch() -> None:
    code = (
        "import sys, nnicompress.evaluators.settings, nnicompress.trace; "
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'torchmetrics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
