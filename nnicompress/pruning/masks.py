"""Hard masks: what is removed stays exactly zero, enforced where the weights are touched, at next to no cost.

A mask is no part of a model's forward: modules keep their class, names and state_dict keys. `attach` fills the removed
elements with zeros at once, after each step of the inner optimizer and before each evaluation. It fills their gradients
as they are accumulated, so that they count neither in a clip norm nor in an optimizer's momentum. Filling (not
multiplying) also clears NaN; `fill` says how it is done in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import Evaluator, Handle
from nnicompress.graph.widths import Removal, Width
from nnicompress.pruning.fill import Fill
from nnicompress.pruning.norms import MaskedNorm, RestrictedNorms


class Masks:
    """Which elements of which parameters are kept; the others are zero.

    `keep` maps a parameter's name (its first, where tied) to a bool tensor of its shape, on the CPU. `norms` take their
    statistics over the kept channels while the masks are attached.
    """

    def __init__(self, keep: Mapping[str, Tensor], norms: Sequence[MaskedNorm] = ()) -> None:
        self.norms = tuple(norms)
        self.keep: dict[str, Tensor] = {name: mask.detach().to("cpu", torch.bool) for name, mask in keep.items()}
        self._fills: dict[str, Fill] = {name: Fill(mask) for name, mask in self.keep.items()}

    @classmethod
    def from_removal(
        cls, model: nn.Module, widths: Iterable[Width], removal: Removal, norms: Sequence[MaskedNorm] = ()
    ) -> Masks:
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
        return cls(keep, norms)

    def __and__(self, other: Masks) -> Masks:
        """What both keep."""
        both = {name: mask & other.keep[name] for name, mask in self.keep.items() if name in other.keep}
        assert not (self.norms and other.norms), "norms restricted twice"
        return Masks({**self.keep, **other.keep, **both}, self.norms or other.norms)

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
            self._fills[name](parameter)

    def attach(self, evaluator: Evaluator) -> Handle:
        """Enforce the masks on the evaluator's bound model until the returned handle is removed."""
        model = evaluator.model
        self.apply(model)
        parameters = self._parameters(model)
        pairs = [(parameter, self._fills[name]) for name, parameter in parameters.items()]

        @torch.no_grad()
        def fill_weights(event: object) -> None:
            for parameter, fill in pairs:
                fill(parameter)

        handles: list[Handle] = [evaluator.after_step(fill_weights), evaluator.before_evaluate(self.apply)]
        handles.append(RestrictedNorms(model, self.norms))
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                hook = _gradient_filler(name, self._fills[name])
                handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        return Attached(handles)

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


class Attached:
    """Several registrations that are undone together."""

    def __init__(self, handles: list[Handle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Undo them; twice is harmless."""
        while self._handles:
            self._handles.pop().remove()


def _gradient_filler(name: str, fill: Fill) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def fill_gradient(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise UserError(
                f"{name} has sparse gradients, which masks can't follow: build its module with sparse=False"
            )
        fill(gradient)

    return fill_gradient
