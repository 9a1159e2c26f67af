"""Scores of channel groups and of blocks: importance summed over what is kept or removed together."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator, StepEvent
from nnicompress.evaluators.preserve import in_evaluation
from nnicompress.graph.widths import Slot, Width
from nnicompress.pruning.granularity import block_sums
from nnicompress.pruning.importance import Importance, Scope
from nnicompress.pruning.inputs import gather
from nnicompress.pruning.norm_slots import NormSlots

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
    show: Callable[[], None] | None = None,
) -> dict[str, Scores]:
    """Scores of every width (by name, shape [size]) and of every tensor's blocks (by parameter name, flat).

    Where the importance needs gradients or inputs they come from `training_steps` batches; the model does not change.
    Inputs are gathered in evaluation mode (a dropped value is none that the network computes), or while `show` runs.
    The evaluator must be bound.

    Raises:
        JobError: a score is not finite; a width has nothing that its score is made of, or no gradient of that.
    """
    model = evaluator.model
    if importance.is_random:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        sizes = {width.name: width.size for width in widths}
        parameters = dict(model.named_parameters())
        sizes |= {name: parameters[name].numel() // int(np.prod(block)) for name, block in blocks.items()}
        return {
            name: torch.rand(size, generator=generator, dtype=torch.float64).numpy() for name, size in sizes.items()
        }
    require_norms(model, importance, widths)
    if importance.inputs is not None:
        used = {slot.tensor for width in widths for slot in counted_slots(width, importance.scope)} | blocks.keys()
        show = show or functools.partial(_show, evaluator, training_steps)
        inputs = gather(model, importance.inputs, used, show)
        _require_inputs(importance, widths, blocks, inputs)
        return checked(score_once(model, importance, widths, blocks, inputs), importance, batches=1)
    if not importance.needs_gradient:
        return checked(score_once(model, importance, widths, blocks), importance, batches=1)

    totals: dict[str, Scores] = {}
    batches = 0

    def add(event: StepEvent) -> None:
        nonlocal batches
        batches += 1
        for name, scores in score_once(event.model, importance, widths, blocks).items():
            totals[name] = totals[name] + scores if name in totals else scores

    _require_gradients(model, importance, widths, blocks)
    handle = evaluator.before_step(add)
    try:
        evaluator.iterate(training_steps)
    finally:
        handle.remove()
    if not batches:
        raise JobError(f"{importance.name}: the evaluator ran no batch with gradients, so nothing could be scored")
    return checked(totals, importance, batches)


def _show(evaluator: Evaluator, num_batches: int) -> None:
    with in_evaluation(evaluator.model):
        evaluator.iterate(num_batches)


def width_scores(
    parameters: Mapping[str, Tensor],
    evidence: Mapping[str, Tensor | None],
    importance: Importance,
    widths: tuple[Width, ...],
    norms: NormSlots | None = None,
) -> dict[str, Tensor]:
    """The score of each channel group of each width, shape [size], float64, from one set of gradients (or inputs).

    Every parameter slot of a group counts (or those that the importance's scope names). An element that lies in two
    groups, as a convolution's weight [o, i] does, counts in both; one that two slots of one group share counts twice,
    as it does in the derivative by a gate on the group. Buffers and parameters without evidence add nothing.
    """
    if importance.rows is not None:
        return {width.name: importance.rows(_rows(parameters, width, importance.scope)) for width in widths}
    assert importance.elements is not None
    counted = {width.name: counted_slots(width, importance.scope, norms) for width in widths}
    every = [slot for slots in counted.values() for slot in slots]
    sums = _slot_sums(every, importance.elements, parameters, evidence, needs_evidence=importance.reads_evidence)
    scores: dict[str, Tensor] = {}
    for width in widths:
        total = torch.zeros(width.size, dtype=torch.float64)
        count = 0
        for slot in counted[width.name]:
            own = sums.get((slot.tensor, slot.dim))
            if own is not None:
                total += own[torch.from_numpy(slot.indices)].sum(dim=1)
                count += parameters[slot.tensor].numel() // len(own) * slot.indices.shape[1]
        scores[width.name] = importance.of_group(total / count if importance.averages else total)
    return scores


def counted_slots(width: Width, scope: Scope, norms: NormSlots | None = None) -> tuple[Slot, ...]:
    """The slots whose elements count for the scores of `width`; all of them where none has the role asked for.

    Where the scope is that of norms, `norms` says which parameters are theirs, and there may be none.
    """
    if scope == "scales" or scope == "norms":
        counted = (NormSlots() if norms is None else norms).of(scope)
        return tuple(slot for slot in width.slots if slot.role == "inner" and slot.tensor in counted)
    chosen = {"producers": width.producers, "consumers": width.consumers, "group": width.slots}[scope]
    return chosen or width.slots


def _rows(parameters: Mapping[str, Tensor], width: Width, scope: Scope) -> Tensor:
    """All counted elements of each channel group side by side: shape [size, elements], float64, on the CPU."""
    parts = []
    for slot in counted_slots(width, scope):
        if slot.tensor in parameters:
            along = parameters[slot.tensor].detach().movedim(slot.dim, 0).double().cpu()
            parts.append(along[torch.from_numpy(slot.indices)].reshape(width.size, -1))
    return torch.cat(parts, dim=1)


def _slot_sums(
    slots: Iterable[Slot],
    elements: Callable[[Tensor, Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    evidence: Mapping[str, Tensor | None],
    *,
    needs_evidence: bool,
) -> dict[tuple[str, int], Tensor]:
    """Element scores summed over all dimensions but a slot's, by tensor and dimension: shape [size of dim], on the CPU.

    Buffers and parameters without evidence have none. The element scores of one tensor at a time are in memory.
    """
    dims: dict[str, set[int]] = defaultdict(set)
    for slot in slots:
        dims[slot.tensor].add(slot.dim)
    sums: dict[tuple[str, int], Tensor] = {}
    for name, own in dims.items():
        if name in parameters:
            scored = _element_scores(elements, parameters[name], evidence.get(name), needs_evidence)
            if scored is not None:
                sums |= {(name, dim): _sums_along(scored, dim).cpu() for dim in own}
    return sums


_BLOCK = 1 << 18
"""Elements of a block: in float64 they fit a processor's cache."""


def _sums_along(scored: Tensor, dim: int) -> Tensor:
    """The sums over all other dimensions, in float64.

    In blocks, because `sum(dtype=torch.float64)` writes a float64 copy of the whole tensor first.
    """
    others = [other for other in range(scored.dim()) if other != dim]
    if not others:
        return scored.double()
    rows = max(1, _BLOCK * len(scored) // max(1, scored.numel()))
    parts = [block.double().sum(dim=others) for block in torch.split(scored, rows)]
    return torch.cat(parts) if dim == 0 else torch.stack(parts).sum(0)


def _element_scores(
    elements: Callable[[Tensor, Tensor], Tensor], weight: Tensor, evidence: Tensor | None, needs_evidence: bool
) -> Tensor | None:
    if needs_evidence and evidence is None:
        return None
    weight = weight.detach().float() if weight.dtype in (torch.float16, torch.bfloat16) else weight.detach()
    if evidence is None:
        evidence = torch.zeros((), device=weight.device)
    return elements(weight, evidence.detach().to(weight.device, weight.dtype))


@torch.no_grad()
def score_once(
    model: nn.Module,
    importance: Importance,
    widths: tuple[Width, ...],
    blocks: Blocks,
    inputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Scores]:
    """The scores from the weights, the gradients and the `inputs` (of `gather`) that are there now."""
    parameters = dict(model.named_parameters())
    evidence: dict[str, Tensor | None] = dict(inputs or {})
    if importance.needs_gradient:
        evidence = {name: parameter.grad for name, parameter in parameters.items()}
    norms = NormSlots.of_model(model)
    scores = width_scores(parameters, evidence, importance, widths, norms)
    for name, block in blocks.items():
        assert importance.elements is not None, f"{importance.name} scores channels only"
        scored = _element_scores(importance.elements, parameters[name], evidence.get(name), importance.reads_evidence)
        if scored is None:  # not used in this forward
            scored = torch.zeros_like(parameters[name])
        scores[name] = importance.of_group(block_sums(scored, block)).double().cpu()
    return {name: importance.of_unit(own).numpy() for name, own in scores.items()}


def require_norms(model: nn.Module, importance: Importance, widths: tuple[Width, ...]) -> None:
    """Raise a JobError where the importance is that of norms and a width has none."""
    if importance.scope not in ("scales", "norms"):
        return
    norms = NormSlots.of_model(model)
    without = [width.name for width in widths if not counted_slots(width, importance.scope, norms)]
    if without:
        raise JobError(
            f"{importance.name} scores the norm behind a layer, and {_first(without)} has none: exclude it, or choose "
            "an importance of weights (l1, taylor)"
        )


def _require_inputs(
    importance: Importance, widths: tuple[Width, ...], blocks: Blocks, inputs: Mapping[str, Tensor]
) -> None:
    lacking = [
        width.name for width in widths if not {s.tensor for s in counted_slots(width, importance.scope)} & inputs.keys()
    ]
    lacking += [name for name in blocks if name not in inputs]
    if lacking:
        raise JobError(
            f"{importance.name} looks at the inputs of convolutions and linear layers, and none of them was called "
            f"with the channels of {_first(lacking)}: exclude it, or choose another importance"
        )


def _first(names: list[str]) -> str:
    return f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}"


def _require_gradients(model: nn.Module, importance: Importance, widths: tuple[Width, ...], blocks: Blocks) -> None:
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = NormSlots.of_model(model)
    frozen = [
        width.name
        for width in widths
        if not {slot.tensor for slot in counted_slots(width, importance.scope, norms)} & trainable
    ]
    frozen += [name for name in blocks if name not in trainable]
    if frozen:
        raise JobError(
            f"{importance.name} needs gradients, and every parameter of {frozen[0]}"
            f"{f' (and of {len(frozen) - 1} more)' if len(frozen) > 1 else ''} is frozen: unfreeze or exclude it"
        )


def checked(totals: dict[str, Scores], importance: Importance, batches: int) -> dict[str, Scores]:
    """The mean over the batches; a JobError where a score is not finite."""
    for name, scores in totals.items():
        if not np.isfinite(scores).all():
            raise JobError(
                f"{importance.name}: {int((~np.isfinite(scores)).sum())} scores of {name} are not finite; "
                "the weights or the loss of the model to prune hold NaN or infinity"
            )
    return {name: scores / batches for name, scores in totals.items()}
