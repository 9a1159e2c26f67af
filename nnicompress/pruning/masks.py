"""Hard masks: what is removed stays exactly zero, enforced where the weights are touched, at next to no cost.

A mask is no part of a model's forward: modules keep their class, names and state_dict keys. `attach` fills the removed
elements with zeros at once, after each step of the inner optimizer and before each evaluation. It fills their gradients
as they are accumulated, so that they count neither in a clip norm nor in an optimizer's momentum. Filling (not
multiplying) also clears NaN. Whole rows and columns are filled by index, so that a structured mask touches only what it
removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import Evaluator, Handle
from nnicompress.graph.widths import Removal, Width


class Masks:
    """Which elements of which parameters are kept; the others are zero.

    `keep` maps a parameter's name (its first, where tied) to a bool tensor of its shape, on the CPU.
    """

    def __init__(self, keep: Mapping[str, Tensor]) -> None:
        self.keep: dict[str, Tensor] = {name: mask.detach().to("cpu", torch.bool) for name, mask in keep.items()}
        self._fills: dict[str, _Fill] = {name: _Fill.of(mask) for name, mask in self.keep.items()}

    @classmethod
    def from_removal(cls, model: nn.Module, widths: Iterable[Width], removal: Removal) -> Masks:
        """Masks over every parameter slot of the removed channel groups: producers, consumers and what lies between.

        A removed group is zero everywhere, so that the masked model computes what the compact one will. Buffers stay:
        what they add to a removed channel meets zeros in every consumer.
        """
        parameters = dict(model.named_parameters())
        keep: dict[str, Tensor] = {}
        for width in widths:
            removed = removal.get(width.name)
            if removed is None or not len(removed):
                continue
            for slot in width.slots:
                if slot.tensor in parameters:
                    mask = keep.setdefault(slot.tensor, torch.ones(parameters[slot.tensor].shape, dtype=torch.bool))
                    mask.index_fill_(slot.dim, torch.from_numpy(slot.indices[removed].ravel()), False)
        return cls(keep)

    def __and__(self, other: Masks) -> Masks:
        """What both keep."""
        both = {name: mask & other.keep[name] for name, mask in self.keep.items() if name in other.keep}
        return Masks({**self.keep, **other.keep, **both})

    @property
    def removed(self) -> int:
        """The number of masked elements."""
        return sum(int((~mask).sum()) for mask in self.keep.values())

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Fill the masked elements of `model` with zeros.

        Raises:
            JobError: the model has not the parameters, or not the shapes, that the masks are for.
        """
        for name, parameter in self._parameters(model).items():
            self._fills[name].fill(parameter)

    def attach(self, evaluator: Evaluator) -> Handle:
        """Enforce the masks on the evaluator's bound model until the returned handle is removed."""
        model = evaluator.model
        self.apply(model)
        parameters = self._parameters(model)
        pairs = [(parameter, self._fills[name]) for name, parameter in parameters.items()]

        @torch.no_grad()
        def fill_weights(event: object) -> None:
            for parameter, fill in pairs:
                fill.fill(parameter)

        handles: list[Handle] = [evaluator.after_step(fill_weights), evaluator.before_evaluate(self.apply)]
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                hook = _gradient_filler(name, self._fills[name])
                handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        return _Attached(handles)

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.keep.items():
            if name not in parameters:
                raise JobError(f"the masks are for another model: {type(model).__name__} has no parameter {name!r}")
            if parameters[name].shape != mask.shape:
                raise JobError(
                    f"the masks are for another model: {name} has shape {tuple(parameters[name].shape)}, "
                    f"its mask {tuple(mask.shape)}"
                )
        return {name: parameters[name] for name in self.keep}


ELEMENTS_PER_CALL = 4000
"""Writing so many elements by index costs about as much more than writing them in runs as one call does (CPU)."""


@dataclass(eq=False)
class _Fill:
    """What to fill with zeros: whole indices of dimensions, and single elements that those do not cover.

    Where the tensor is large enough to pay for the calls, indices are filled in runs: the dimension, and the lengths of
    kept and masked runs in turn, a kept one first (it may be empty).
    """

    runs: list[tuple[int, list[int]]]
    slices: list[tuple[int, Tensor]]
    elements: Tensor | None

    @classmethod
    def of(cls, keep: Tensor) -> _Fill:
        drop = ~keep
        covered = torch.zeros_like(drop)
        runs: list[tuple[int, list[int]]] = []
        slices: list[tuple[int, Tensor]] = []
        for dim in range(drop.dim()):
            others = [other for other in range(drop.dim()) if other != dim]
            whole = drop.all(dim=others) if others else drop
            index = whole.nonzero().flatten()
            if len(index):
                lengths = _runs(index.tolist(), keep.shape[dim])
                if keep.numel() * len(index) // keep.shape[dim] > ELEMENTS_PER_CALL * (len(lengths) // 2):
                    runs.append((dim, lengths))
                else:
                    slices.append((dim, index))
                covered.index_fill_(dim, index, True)
        rest = drop & ~covered
        return cls(runs, slices, rest if bool(rest.any()) else None)

    def fill(self, tensor: Tensor) -> None:
        """Zero the masked elements of `tensor`, in place; the indices follow it to its device."""
        for dim, lengths in self.runs:
            torch._foreach_zero_(tensor.split_with_sizes(lengths, dim)[1::2])
        for position, (dim, index) in enumerate(self.slices):
            if index.device != tensor.device:
                index = index.to(tensor.device)
                self.slices[position] = (dim, index)
            tensor.index_fill_(dim, index, 0)
        if self.elements is not None:
            if self.elements.device != tensor.device:
                self.elements = self.elements.to(tensor.device)
            tensor.masked_fill_(self.elements, 0)


def _runs(indices: list[int], size: int) -> list[int]:
    """Lengths of the runs of `range(size)` outside and inside of `indices` in turn: [1, 2, 4] of 6: [1, 2, 1, 1, 1]."""
    lengths = [0]
    inside = set(indices)
    for index in range(size):
        if (index in inside) != (len(lengths) % 2 == 0):
            lengths.append(0)
        lengths[-1] += 1
    return lengths


class _Attached:
    """All registrations of one `attach`."""

    def __init__(self, handles: list[Handle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Undo them; twice is harmless."""
        while self._handles:
            self._handles.pop().remove()


def _gradient_filler(name: str, fill: _Fill) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def fill_gradient(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise UserError(
                f"{name} has sparse gradients, which masks can't follow: build its module with sparse=False"
            )
        fill.fill(gradient)

    return fill_gradient
