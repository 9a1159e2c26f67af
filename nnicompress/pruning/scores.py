"""Scores of channel groups and of blocks: importance summed over what is kept or removed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator, StepEvent
from nnicompress.graph.widths import Slot, Width
from nnicompress.pruning.granularity import block_sums
from nnicompress.pruning.importance import Importance, Scope

Scores = NDArray[np.float64]
Blocks = Mapping[str, tuple[int, ...]]
"""Parameter name -> the block's length along each dimension."""


def measure(
    evaluator: Evaluator,
    importance: Importance,
    widths: tuple[Width, ...],
    blocks: Blocks,
    *,
    training_steps: int,
    seed: int | None = None,
) -> dict[str, Scores]:
    """Scores of every width (by name, shape [size]) and of every tensor's blocks (by parameter name, flat).

    Where the importance needs gradients they come from `training_steps` batches; the model does not change. The
    evaluator must be bound.

    Raises:
        JobError: a score is not finite, or nothing that a width's score is made of has a gradient.
    """
    model = evaluator.model
    if importance.elements is None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        sizes = {width.name: width.size for width in widths}
        parameters = dict(model.named_parameters())
        sizes |= {name: parameters[name].numel() // int(np.prod(block)) for name, block in blocks.items()}
        return {
            name: torch.rand(size, generator=generator, dtype=torch.float64).numpy() for name, size in sizes.items()
        }
    if not importance.needs_gradient:
        totals = _score_once(model, importance, widths, blocks)
        return _checked(totals, importance, batches=1)

    totals = {}
    batches = 0

    def add(event: StepEvent) -> None:
        nonlocal batches
        batches += 1
        for name, scores in _score_once(event.model, importance, widths, blocks).items():
            totals[name] = totals[name] + scores if name in totals else scores

    _require_gradients(model, importance, widths, blocks)
    handle = evaluator.before_step(add)
    try:
        evaluator.iterate(training_steps)
    finally:
        handle.remove()
    if not batches:
        raise JobError(f"{importance.name}: the evaluator ran no batch with gradients, so nothing could be scored")
    return _checked(totals, importance, batches)


def width_scores(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
    importance: Importance,
    widths: tuple[Width, ...],
) -> dict[str, Tensor]:
    """The score of each channel group of each width, shape [size], float64, from one set of gradients.

    Every parameter slot of a group counts (or those of its producers, by the importance's scope). An element that lies
    in two groups, as a convolution's weight [o, i] does, counts in both; one that two slots of one group share counts
    twice, as it does in the derivative by a gate on the group. Buffers and parameters without a gradient add nothing.
    """
    assert importance.elements is not None
    cache = _SlotSums(importance.elements, parameters, gradients, needs_gradient=importance.needs_gradient)
    scores: dict[str, Tensor] = {}
    for width in widths:
        total = torch.zeros(width.size, dtype=torch.float64)
        for slot in counted_slots(width, importance.scope):
            sums = cache.along(slot.tensor, slot.dim)
            if sums is not None:
                total += sums[torch.from_numpy(slot.indices)].sum(dim=1)
        scores[width.name] = importance.of_group(total)
    return scores


def counted_slots(width: Width, scope: Scope) -> tuple[Slot, ...]:
    """The slots whose elements count for the scores of `width`; all of them where none has the role asked for."""
    chosen = {"producers": width.producers, "consumers": width.consumers, "group": width.slots}[scope]
    return chosen or width.slots


class _SlotSums:
    """Element scores of each parameter, summed over all its dimensions but one; each computed once a batch."""

    def __init__(
        self,
        elements: Callable[[Tensor, Tensor], Tensor],
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        *,
        needs_gradient: bool,
    ) -> None:
        self._elements = elements
        self._parameters, self._gradients, self._needs_gradient = parameters, gradients, needs_gradient
        self._scored: dict[str, Tensor | None] = {}
        self._sums: dict[tuple[str, int], Tensor] = {}

    def along(self, name: str, dim: int) -> Tensor | None:
        """Shape [size of dim], float64, on the CPU; None for a buffer or a parameter without a gradient."""
        if (name, dim) not in self._sums:
            if name not in self._scored:
                self._scored[name] = self._score(name)
            scored = self._scored[name]
            if scored is None:
                return None
            others = [other for other in range(scored.dim()) if other != dim]
            sums = scored.sum(dim=others, dtype=torch.float64) if others else scored.double()
            self._sums[name, dim] = sums.cpu()
        return self._sums[name, dim]

    def _score(self, name: str) -> Tensor | None:
        if name not in self._parameters:
            return None
        return _element_scores(self._elements, self._parameters[name], self._gradients.get(name), self._needs_gradient)


def _element_scores(
    elements: Callable[[Tensor, Tensor], Tensor], weight: Tensor, gradient: Tensor | None, needs_gradient: bool
) -> Tensor | None:
    if needs_gradient and gradient is None:
        return None
    weight = weight.detach().float() if weight.dtype in (torch.float16, torch.bfloat16) else weight.detach()
    gradient = torch.zeros((), device=weight.device) if gradient is None else gradient.detach().to(weight.dtype)
    return elements(weight, gradient)


@torch.no_grad()
def _score_once(
    model: nn.Module, importance: Importance, widths: tuple[Width, ...], blocks: Blocks
) -> dict[str, Scores]:
    assert importance.elements is not None
    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items()} if importance.needs_gradient else {}
    scores = {name: total.numpy() for name, total in width_scores(parameters, gradients, importance, widths).items()}
    for name, block in blocks.items():
        scored = _element_scores(importance.elements, parameters[name], gradients.get(name), importance.needs_gradient)
        if scored is None:  # not used in this forward
            scored = torch.zeros_like(parameters[name])
        scores[name] = importance.of_group(block_sums(scored, block)).double().cpu().numpy()
    return scores


def _require_gradients(model: nn.Module, importance: Importance, widths: tuple[Width, ...], blocks: Blocks) -> None:
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = [
        width.name for width in widths if not {s.tensor for s in counted_slots(width, importance.scope)} & trainable
    ]
    frozen += [name for name in blocks if name not in trainable]
    if frozen:
        raise JobError(
            f"{importance.name} needs gradients, and every parameter of {frozen[0]}"
            f"{f' (and of {len(frozen) - 1} more)' if len(frozen) > 1 else ''} is frozen: unfreeze or exclude it"
        )


def _checked(totals: dict[str, Scores], importance: Importance, batches: int) -> dict[str, Scores]:
    for name, scores in totals.items():
        if not np.isfinite(scores).all():
            raise JobError(
                f"{importance.name}: {int((~np.isfinite(scores)).sum())} scores of {name} are not finite; "
                "the weights or the loss of the model to prune hold NaN or infinity"
            )
    return {name: scores / batches for name, scores in totals.items()}
