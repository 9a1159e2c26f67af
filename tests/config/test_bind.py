"""Arguments of a `_target_` are bound to its signature before anything is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnicompress.config.bind import bind
from nnicompress.errors import InputErrors, TrustError
from nnicompress.trace import Traced


def lines_of(node: dict[str, Any], key: str = "model", **kwargs: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        bind(node, key=key, **kwargs)
    return [str(error) for error in caught.value.errors]


def test_a_node_becomes_a_record_of_how_to_build_it() -> None:
    traced = bind({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}, key="model")
    assert (traced.cls, traced.args, dict(traced.kwargs)) == (
        torch.nn.Linear,
        (),
        {"in_features": 3, "out_features": 2},
    )
    assert traced.build().weight.shape == (2, 3)


def test_nested_nodes_are_built_first_and_positional_arguments_pass() -> None:
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "_args_": [4, 2]}],
    }
    model = bind(node, key="model").build()
    assert [type(module).__name__ for module in model] == ["Flatten", "Linear"]
    loss = bind(
        {"_target_": "torch.nn.CrossEntropyLoss", "weight": {"_target_": "torch.tensor", "data": [1.0, 3.0]}},
        key="evaluator.loss",
    ).build()
    assert loss.weight.tolist() == [1.0, 3.0]


def test_nothing_is_called_while_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "calls_of_bind.py").write_text("def build(width): raise SystemExit('called')\n")
    assert isinstance(bind({"_target_": "calls_of_bind.build", "width": 3}, key="model"), Traced)


@pytest.mark.parametrize(
    ("node", "lines"),
    [
        (
            {"_target_": "torch.nn.Linear", "in_features": 3, "out_feature": 2},
            [
                "model: torch.nn.Linear takes no 'out_feature'; did you mean 'out_features'? "
                "(mine.yaml:model.out_feature)",
                "model.out_features: torch.nn.Linear needs a value; pass model.out_features=VALUE "
                "(mine.yaml:model.out_features)",
            ],
        ),
        ({"_target_": "torch.nn.ReLU", "slope": 1}, ["model: torch.nn.ReLU takes no 'slope'; it takes inplace"]),
        (
            {"_target_": "torch.nn.Linear", "_args_": [1, 2, True, None, None, 6]},
            ["model._args_: torch.nn.Linear takes 5"],
        ),
        (
            {"_target_": "torch.nn.Linear", "_args_": [1, 2], "in_features": 3},
            ["model.in_features: torch.nn.Linear is given"],
        ),
        (
            {"_target_": "torch.nn.Linear", "in_features": "three", "out_features": 2.5, "bias": 1},
            [
                "model.in_features: 'three' is not a whole number",
                "model.out_features: 2.5 is not a whole number",
                "model.bias: 1 is not true or false",
            ],
        ),
        (
            {"_target_": "torch.nn.Linear", "in_features": True, "out_features": None},
            ["model.in_features: True is not a whole number", "model.out_features: null is not a whole number"],
        ),
        ({"_target_": "torch.nn.ReLU", "_partial_": True}, ["model: _partial_ is not supported"]),
        ({"_target_": "torch.nn.Liner"}, ["model._target_: torch.nn has no 'Liner'; did you mean 'Linear'"]),
        (
            {
                "_target_": "torch.nn.Sequential",
                "_args_": [{"_target_": "torch.nn.ReLU", "slope": 1}, {"_target_": "os.getcwd"}],
            },
            ["model._args_.0: torch.nn.ReLU takes no 'slope'", "model._args_.1._target_: os.getcwd may not be called"],
        ),
        (
            {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": 5}]},
            ["model._args_.0._target_: 5 is not a dotted name"],
        ),
    ],
)
def test_what_is_wrong_with_arguments(node: dict[str, Any], lines: list[str]) -> None:
    found = lines_of(node, source_of=lambda key: f"mine.yaml:{key}")
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


def test_numbers_and_tensors_where_a_number_or_a_tensor_is_meant() -> None:
    for lr in (1, 0.5):
        bind({"_target_": "torch.optim.SGD", "lr": lr}, key="optimizer", positional=("params",))
    assert lines_of({"_target_": "torch.optim.SGD", "lr": "fast"}, "optimizer", positional=("params",)) == [
        "optimizer.lr: 'fast' is not a number or a tensor"
    ]


def test_what_is_given_later_is_not_missing_and_may_not_be_given_twice() -> None:
    node = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "interval": "step"}
    bind(node, key="scheduler", positional=("optimizer",), filled=("total_steps",), own=("interval",))
    assert lines_of({**node, "optimizer": 3}, "scheduler", positional=("optimizer",), own=("interval",)) == [
        "scheduler.optimizer: torch.optim.lr_scheduler.OneCycleLR is given 'optimizer' already; leave it out"
    ]
    assert lines_of(
        {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"}, "scheduler", positional=("optimizer",)
    ) == ["scheduler.T_max: torch.optim.lr_scheduler.CosineAnnealingLR needs a value; pass scheduler.T_max=VALUE"]


def test_schedulers_inside_a_scheduler_are_given_the_optimizer_too() -> None:
    inner = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"}
    node = {"_target_": "torch.optim.lr_scheduler.SequentialLR", "schedulers": [inner], "milestones": []}
    bind(node, key="scheduler", positional=("optimizer",), filled=("T_max",))


def test_code_from_a_hub_is_refused() -> None:
    node = {"_target_": "transformers.AutoModel.from_pretrained", "_args_": ["owner/name"], "trust_remote_code": True}
    with pytest.raises(InputErrors) as caught:
        bind(node, key="model")
    assert isinstance(caught.value.errors[0], TrustError)
