"""A model on the way that a recipe takes it: captured, grouped, shrunk and proved, exported, saved and loaded."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nnicompress.doctor.checks import Check, Missing, Wrong
from nnicompress.doctor.snapshot import differences, parts_of
from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.inputs import as_model_input, resized
from nnicompress.export.plain import save_plain
from nnicompress.export.program import ProgramModel, export_program
from nnicompress.graph import ChannelGroups, Removal, capture, find_channel_groups, prunable_fraction
from nnicompress.pipeline.seeding import seed_everything
from nnicompress.pruning.masks import Masks
from nnicompress.shrink import prove, shrink
from nnicompress.trace import Traced

SHARE = 0.5
TOLERANCE = 1e-4
MOST_LINES = 12


@dataclass
class ModelSubject:
    """How the model is built, and inputs of its forward where the user gave some."""

    build: Traced
    recipe: Mapping[str, Any]
    """The same as plain values: `_target_` and arguments."""
    given: tuple[Tensor, ...] = ()
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        seed_everything(0)
        self.model = self.build.build()

    @cached_property
    def inputs(self) -> ModelInput:
        """Two samples or more."""
        model = self.model
        if self.given:
            return resized((self.given, {}), 2) if len(self.given[0]) < 2 else (self.given, {})
        dummy = getattr(model, "dummy_input", None)
        if dummy is not None:
            inputs = as_model_input(dummy() if callable(dummy) else dummy)
            return resized(inputs, 2) if _batch_size(inputs) < 2 else inputs
        shape = getattr(model, "input_shape", None)
        if shape is not None:
            return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),), {}
        raise Missing(
            f"no input of {type(model).__name__}'s forward: it has neither `dummy_input` nor `input_shape`, and no "
            "--input is given"
        )

    @cached_property
    def groups(self) -> ChannelGroups:
        """The channel groups of the captured forward."""
        args, kwargs = self.inputs
        return find_channel_groups(capture(self.model, args, kwargs))

    @cached_property
    def removal(self) -> Removal:
        """Half of each width, those with the smallest weights first."""
        parameters = dict(self.model.named_parameters())
        removal = {}
        for width in self.groups.widths:
            scores = torch.zeros(width.size, dtype=torch.float64)
            for slot in width.producers:
                if slot.tensor in parameters:
                    weight = parameters[slot.tensor].detach().double().abs()
                    sums = weight.sum([dim for dim in range(weight.dim()) if dim != slot.dim])
                    scores += sums[torch.from_numpy(slot.indices)].sum(1)
            order = np.argsort(scores.numpy(), kind="stable")
            removal[width.name] = np.sort(order[: int(width.size * SHARE)])
        return removal

    @cached_property
    def compact(self) -> nn.Module:
        """The model without half of its channel groups."""
        masked = copy.deepcopy(self.model)
        Masks.from_removal(masked, self.groups.widths, self.removal).apply(masked)
        compact = shrink(masked, self.groups, self.removal)
        batches = [resized(self.inputs, size) for size in (2, 3)]
        prove(masked, compact, self.groups, self.removal, batches)
        return compact.eval()

    @property
    def notes(self) -> tuple[str, ...]:
        """The widths, and what stays as it is and why; nothing where they couldn't be found."""
        groups = self.__dict__.get("groups")
        if groups is None:
            return ()
        lines = [
            f"{width.name}: {width.size} channel groups, made by "
            f"{', '.join(dict.fromkeys(slot.tensor for slot in width.producers))}"
            for width in groups.widths
        ]
        reasons: dict[str, list[str]] = {}
        for entry in groups.unprunable:
            reasons.setdefault(entry.reason, []).append(f"dimension {entry.dim} of {entry.tensor}")
        kept = [f"{places[0]}{_more(places)}: {reason}" for reason, places in reasons.items()]
        return (*_cut("prunable widths", lines), *_cut("dimensions that stay", kept))


def has_input(subject: ModelSubject) -> str:
    """There is an input to try the forward on."""
    leaves = [leaf for leaf in pytree.tree_leaves(subject.inputs) if isinstance(leaf, Tensor)]
    return ", ".join(f"{'x'.join(map(str, leaf.shape))} {str(leaf.dtype).removeprefix('torch.')}" for leaf in leaves)


def runs(subject: ModelSubject) -> str:
    """The forward runs in evaluation mode and is deterministic and finite there."""
    first, second = _outputs(subject.model, subject.inputs), _outputs(subject.model, subject.inputs)
    if not first:
        raise Wrong("the forward returns no tensor")
    if not all(bool(torch.isfinite(leaf).all()) for leaf in first if leaf.is_floating_point()):
        raise Wrong("outputs are not finite")
    if not all(map(torch.equal, first, second)):
        raise Wrong("two calls with the same input give different outputs in evaluation mode")
    return f"outputs {', '.join('x'.join(map(str, leaf.shape)) for leaf in first)}"


def is_captured(subject: ModelSubject) -> str:
    """torch.export captures the forward, and the model is as before."""
    before = parts_of(subject.model)
    args, kwargs = subject.inputs
    captured = capture(subject.model, args, kwargs)
    if left := differences(before, parts_of(subject.model)):
        raise Wrong(f"the capture leaves {left[0]} changed")
    return f"{sum(node.op == 'call_function' for node in captured.graph.nodes)} operators"


def is_grouped(subject: ModelSubject) -> str:
    """There are channels that can be removed."""
    groups = subject.groups
    if not groups.widths:
        reasons = list(dict.fromkeys(entry.reason for entry in groups.unprunable))
        raise Missing(f"no width can be pruned: {'; '.join(reasons[:3]) or 'no layer with weights'}")
    share = prunable_fraction(subject.model, groups)
    return f"{len(groups.widths)} widths; {share:.0%} of the layers' weights lie in them"


def shrinks(subject: ModelSubject) -> str:
    """Half of every width is removed, and the compact model is proved to be the masked one."""
    before, after = _count(subject.model), _count(subject.compact)
    return f"{before:,} to {after:,} parameters, proved"


def exports(subject: ModelSubject) -> str:
    """The compact model is exported with a free batch size, loaded again, and gives the same outputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        export_program(subject.compact, subject.inputs, path)
        loaded = ProgramModel(path)
        for size in (2, 3):
            inputs = resized(subject.inputs, size)
            for expected, found in zip(_outputs(subject.compact, inputs), _outputs(loaded, inputs), strict=True):
                if not torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE):
                    raise Wrong(f"the exported file gives other outputs, for a batch of {size}")
        return f"pt2, {path.stat().st_size:,} bytes"


def is_saved(subject: ModelSubject) -> str:
    """The compact model is saved, and loaded again from how the model is built."""
    with tempfile.TemporaryDirectory() as folder:
        save_plain(subject.compact, subject.build, subject.recipe, subject.inputs, Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return f"model/, {size:,} bytes"


def _outputs(model: nn.Module, inputs: ModelInput) -> list[Tensor]:
    args, kwargs = inputs
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
    finally:
        for module, training in modes:
            module.training = training


def _batch_size(inputs: ModelInput) -> int:
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return len(leaves[0]) if leaves else 0


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _more(places: list[str]) -> str:
    return f" and {len(places) - 1} more" if len(places) > 1 else ""


def _cut(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:MOST_LINES]), *more]


MODEL_CHECKS: tuple[Check[ModelSubject], ...] = (
    Check("input", has_input, "give --input 1x3x32x32 (2x16:int64 for ids), once for each argument of forward"),
    Check(
        "forward", runs, "check --input against the forward; respect eval() wherever something is random", ("input",)
    ),
    Check(
        "capture", is_captured, "no Python branch on tensor values, no NumPy or .item() in the forward", ("forward",)
    ),
    Check("channel groups", is_grouped, "take sizes from shapes or -1, not literal numbers (see below)", ("capture",)),
    Check("shrink", shrinks, "let the forward take any batch size; report it if the proof fails", ("channel groups",)),
    Check("export", exports, "let the forward take any batch size", ("shrink",)),
    Check("save and load", is_saved, "arguments of the constructor are plain values; tensors are buffers", ("shrink",)),
)
