"""The shipped pruner passes every check; for each check there is a pruner that fails exactly that one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.doctor.checks import Finding, perform
from nnicompress.doctor.compressor import COMPRESSOR_CHECKS, CompressorSubject
from nnicompress.errors import UserError
from nnicompress.evaluators.registry import Registration
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.pruner import Pruner


def failing(factory: Any, **arguments: Any) -> dict[str, Finding]:
    findings = perform(COMPRESSOR_CHECKS, CompressorSubject(factory, arguments))
    return {finding.name: finding for finding in findings if finding.status in ("missing", "wrong")}


@pytest.mark.parametrize("importance", [None, "l1", "random"])
def test_the_shipped_pruner_passes_every_check(importance: str | None) -> None:
    def make(evaluator: Any, settings: Any) -> Pruner:
        own = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
        return Pruner(settings if importance is None else own, evaluator, importance=importance)

    findings = perform(COMPRESSOR_CHECKS, CompressorSubject(make, {}))
    assert [finding.status for finding in findings] == ["ok"] * 6, findings


def weights_alone(settings: Any, evaluator: Any) -> Pruner:
    return Pruner([{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator, importance="level", granularity="element")


class NoCompress:
    def __init__(self, settings: Any, evaluator: Any) -> None:
        pass


class RemovesNothing(Pruner):
    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        return dataclasses.replace(super().compress(model, groups), masks=Masks({}))


class ReturnsTheModel(Pruner):
    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        super().compress(model, groups)
        return model


class MisnamedNeed(Pruner):
    """`compress` asks for what it has; what it tells others is misspelt."""

    @staticmethod
    def requirements(settings: Any, importance: Any = None) -> Any:
        return () if importance is not None else (("gradients", "to score"),)


class MasksLater(Pruner):
    """Leaves the weights as they were."""

    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        result = super().compress(model, groups)
        model.load_state_dict(before)
        return result


class LeavesAHook(Pruner):
    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        model.get_submodule("up").register_forward_hook(lambda module, args, output: None)
        return super().compress(model, groups)


class LeavesAWrapper(Pruner):
    """As wrapping libraries do."""

    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        result = super().compress(model, groups)
        model.get_submodule("up").register_buffer("weight_mask", torch.ones(1))
        return result


class OtherIndices(Pruner):
    """What it says was removed is not what is masked."""

    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        result = super().compress(model, groups)
        assert result.groups is not None
        others = {
            name: np.setdiff1d(np.arange(result.groups[name].size), indices) for name, indices in result.removal.items()
        }
        return dataclasses.replace(result, removal=others)


class LooseMasks(Masks):
    def attach(self, evaluator: Any) -> Any:
        return Registration({}, 0)


class DoesNotHold(Pruner):
    def compress(self, model: nn.Module, groups: Any = None) -> Any:
        result = super().compress(model, groups)
        return dataclasses.replace(result, masks=LooseMasks(result.masks.keep))


@pytest.mark.parametrize(
    ("factory", "check", "status", "told"),
    [
        (NoCompress, "compress", "missing", "NoCompress has no method compress(model)"),
        (RemovesNothing, "compress", "wrong", "nothing was removed, though half of the channels were asked for"),
        (ReturnsTheModel, "compress", "missing", "SampleNet has no `masks` of class Masks"),
        (MisnamedNeed, "requirements", "wrong", "('gradients', 'to score') is not (capability, what for)"),
        (MasksLater, "masked", "wrong", "masked elements of up.weight are not zero"),
        (LeavesAHook, "nothing left", "wrong", "forward_hooks of up"),
        (LeavesAWrapper, "nothing left", "wrong", "the keys of state_dict"),
        (OtherIndices, "shrink", "wrong", "the compact model is not the masked model"),
        (weights_alone, "shrink", "missing", "masks only"),
        (DoesNotHold, "masks hold", "wrong", "after two training steps"),
    ],
)
def test_each_fault_fails_exactly_its_check(factory: Any, check: str, status: str, told: str) -> None:
    found = failing(factory)
    assert list(found) == [check], found
    assert found[check].status == status and told in found[check].found and found[check].advice


def test_requirements_may_be_lacking() -> None:
    class Own:
        def __init__(self, evaluator: Any, settings: Any) -> None:
            self.pruner = Pruner(settings, evaluator)

        def compress(self, model: nn.Module) -> Any:
            return self.pruner.compress(model)

    found = failing(Own)
    assert {name: finding.status for name, finding in found.items()} == {"requirements": "missing"}
    assert found["requirements"].found == "Own has no requirements(settings)"


def test_arguments_reach_the_constructor() -> None:
    with pytest.raises(UserError, match="missing a required argument: 'strength'"):
        CompressorSubject(NeedsStrength, {})
    assert CompressorSubject(NeedsStrength, {"strength": 2}).compressor.strength == 2


class NeedsStrength(Pruner):
    def __init__(self, settings: Any, evaluator: Any, strength: int) -> None:
        super().__init__(settings, evaluator)
        self.strength = strength
