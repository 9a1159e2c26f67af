"""The contract of a compressor, on a small network, the shipped evaluator and the digits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from nnicompress.doctor.checks import Check, Missing, Wrong
from nnicompress.doctor.sample import SampleNet, sample_evaluator
from nnicompress.doctor.snapshot import differences, parts_of
from nnicompress.doctor.trial import CAPABILITIES, listed
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.pipeline.seeding import seed_everything
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.shrink import prove, shrink
from nnicompress.trace import call

TARGETS = ({"op_types": ["Conv2d"], "exclude_op_names": ["stem"], "sparse_ratio": 0.5},)


class CompressorSubject:
    """A compressor that is built once and has compressed once, with what was there before."""

    def __init__(self, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        seed_everything(0)
        self.factory = factory
        self.settings = PrunerSettings.from_targets(TARGETS)
        self.model: nn.Module = SampleNet()
        self.evaluator: Evaluator = sample_evaluator(self.model)
        self.before = parts_of(self.model)
        self.compressor = self._built(arguments)

    def _built(self, arguments: Mapping[str, Any]) -> Any:
        """By the names of its parameters, where they are `settings` and `evaluator`; else in this order."""
        given: dict[str, Any] = {"settings": self.settings, "evaluator": self.evaluator}
        names = inspect.signature(self.factory).parameters
        named = {name: value for name, value in given.items() if name in names and name not in arguments}
        if "evaluator" in names:
            return call(self.factory, **named, **arguments)
        return call(self.factory, *given.values(), **arguments)

    @cached_property
    def result(self) -> Any:
        """What `compress` returned; the model is masked from then on."""
        return self.compressor.compress(self.model)

    @property
    def masks(self) -> Masks:
        """The result's masks."""
        masks = getattr(self.result, "masks", None)
        if not isinstance(masks, Masks):
            raise Missing(f"{type(self.result).__name__} has no `masks` of class Masks")
        return masks


def compresses(subject: CompressorSubject) -> str:
    """`compress(model)` returns a result with masks, and something is removed."""
    if not callable(getattr(subject.compressor, "compress", None)):
        raise Missing(f"{type(subject.compressor).__name__} has no method compress(model)")
    removed = subject.masks.removed
    if not removed:
        raise Wrong("nothing was removed, though half of the channels were asked for")
    return f"{removed:,} weights masked"


def says_what_it_needs(subject: CompressorSubject) -> str:
    """A static `requirements(settings)`, so that `check` can tell the user without a model."""
    requirements = getattr(subject.compressor, "requirements", None)
    if requirements is None:
        raise Missing(f"{type(subject.compressor).__name__} has no requirements(settings)")
    found = type(subject.compressor).requirements(subject.settings)
    for entry in found:
        if not (isinstance(entry, tuple) and len(entry) == 2) or entry[0] not in CAPABILITIES:
            raise Wrong(f"{entry!r} is not (capability, what for); capabilities: {', '.join(CAPABILITIES)}")
    return ", ".join(capability for capability, _ in found) or "nothing"


def is_masked(subject: CompressorSubject) -> str:
    """After `compress` what the masks remove is zero."""
    _require_zeros(subject, "after compress")
    return "what is removed is zero"


def leaves_nothing(subject: CompressorSubject) -> str:
    """The model is as it was but for its weights, and the evaluator is free."""
    assert subject.result is not None
    if left := differences(subject.before, parts_of(subject.model)):
        raise Wrong(f"left changed: {listed(left)}")
    try:
        bound = subject.evaluator.model
    except UserError:
        return "classes, attributes, hooks and names as before"
    raise Wrong(f"the evaluator still has a model bound ({type(bound).__name__})")


def shrinks(subject: CompressorSubject) -> str:
    """`removal` and `groups` are what shrink takes; the compact model is proved to be the masked one."""
    result = subject.result
    groups, removal = getattr(result, "groups", None), getattr(result, "removal", None)
    if groups is None or not removal:
        raise Missing("the result has no `groups` or no `removal`: nothing can be made smaller, masks only")
    compact = shrink(subject.model, groups, removal)
    with subject.evaluator.bound(subject.model):
        batches = [subject.evaluator.example_inputs(size) for size in (2, 3)]
    prove(subject.model, compact, groups, removal, batches)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (subject.model, compact)]
    return f"{sizes[0]:,} to {sizes[1]:,} parameters, proved"


def masks_hold(subject: CompressorSubject) -> str:
    """The masks hold over a training, also where something writes into what was removed."""
    with subject.evaluator.bound(subject.model):
        handle = subject.masks.attach(subject.evaluator)
        # A channel that is zero in all of its slots has no gradient and would stay zero without any mask.
        with torch.no_grad():
            parameters = dict(subject.model.named_parameters(remove_duplicate=False))
            for name, keep in subject.masks.keep.items():
                parameters[name].masked_fill_(~keep, 1.0)
        subject.evaluator.train(max_steps=2)
        handle.remove()
    _require_zeros(subject, "after two training steps")
    return "over two training steps"


def _require_zeros(subject: CompressorSubject, when: str) -> None:
    parameters = dict(subject.model.named_parameters(remove_duplicate=False))
    for name, keep in subject.masks.keep.items():
        count = int(parameters[name].detach()[~keep].count_nonzero())
        if count:
            raise Wrong(f"{when} {count} of {int((~keep).sum())} masked elements of {name} are not zero")


COMPRESSOR_CHECKS: tuple[Check[CompressorSubject], ...] = (
    Check("compress", compresses, "return a result with `masks` (pruning/masks.py), as PruningResult does"),
    Check(
        "requirements",
        says_what_it_needs,
        "add a static method requirements(settings) -> (capability, what for), ...",
        ("compress",),
    ),
    Check("masked", is_masked, "call masks.apply(model) at the end of compress", ("compress",)),
    Check(
        "nothing left",
        leaves_nothing,
        "work inside evaluator.bound(model), and remove every hook, wrapper and attribute",
        ("compress",),
    ),
    Check(
        "shrink",
        shrinks,
        "return `groups` and `removal`, and mask every slot of a removed channel: Masks.from_removal",
        ("masked",),
    ),
    Check("masks hold", masks_hold, "masks name parameters of the model, with their shapes", ("nothing left",)),
)
