"""The pruner: importance x granularity x allocation x schedule, around the user's training.

for each removal of the schedule:               one_shot: a single one
    scores     <- importance over batches       scores.py, importance.py
    removal    <- scores and ratios             allocation.py
    masks      <- removal                       masks.py
    train interval_steps, masks enforced        (not after the last)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnicompress import exchange
from nnicompress.errors import ConfigError, NothingPrunedError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener, Note, silent
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import ChannelGroups, Indices
from nnicompress.pruning.allocation import Allotment, Unit, allocate, normalize, rounding_step
from nnicompress.pruning.granularity import spread_blocks
from nnicompress.pruning.importance import IMPORTANCES, Importance, importance_of
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.norms import masked_norms
from nnicompress.pruning.plan import Plan, TensorTarget, WidthTarget, make_plan
from nnicompress.pruning.result import Position, Removed, describe
from nnicompress.pruning.result import PruningResult as PruningResult
from nnicompress.pruning.schedule import fractions
from nnicompress.pruning.scores import Scores, measure
from nnicompress.pruning.settings import PrunerSettings, TensorSettings

MOST_OF_A_WIDTH = 0.95
"""The default `max_sparse_ratio` of channels: competing widths may not empty a layer."""
Targets = Sequence[Mapping[str, Any]]
_UNEQUAL_MASKS = (
    "their scores were made of different weights, gradients or random numbers; the training must average its gradients "
    "over the processes"
)


class Pruner:
    """Chooses what to remove from a model and masks it; `shrink` then removes it.

    Args:
        settings: PrunerSettings, or a list of dicts, one a target: `[{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]`.
        evaluator: the user's training and evaluation.
        listener: hears notes about the progress.
        importance: with a list: a name, a dict of ImportanceSettings, or an `Importance` of your own; an `Importance`
            also replaces the one of PrunerSettings.
        others: with a list: the other keys of PrunerSettings.

    Raises:
        InputErrors: wrong keys or values in the list of dicts.
    """

    def __init__(
        self,
        settings: PrunerSettings | Targets,
        evaluator: Evaluator,
        listener: Listener = silent,
        *,
        importance: str | Mapping[str, Any] | Importance | None = None,
        **others: Any,
    ) -> None:
        own = importance if isinstance(importance, Importance) else None
        if not isinstance(settings, PrunerSettings):
            named = {} if own is not None or importance is None else {"importance": importance}
            settings = PrunerSettings.from_targets(settings, **named, **others)
        elif others or (importance is not None and own is None):
            names = ", ".join([*others, *(["importance"] if importance is not None else [])])
            raise TypeError(f"PrunerSettings already say {names}")
        self.settings = settings
        self.evaluator = evaluator
        self._listener = listener
        self._importance = own if own is not None else importance_of(settings.importance)
        self._at = Position(0, Removed({}, {}))
        self._resume: Position | None = None

    @staticmethod
    def requirements(settings: PrunerSettings, importance: Importance | None = None) -> tuple[tuple[str, str], ...]:
        """The capabilities that a pruner with these settings asks of an evaluator, each with what it is for."""
        importance = IMPORTANCES[settings.importance.name] if importance is None else importance
        needs: list[tuple[str, str]] = []
        if settings.prunes_channels:
            needs.append(("example_inputs", "to follow the model's channels through one forward"))
        if importance.needs_gradient:
            needs.append(("iterate", f"to gather the gradients of {importance.name} importance"))
        if settings.schedule.name != "one_shot":
            needs.append(("train", f"to train between the removals of the {settings.schedule.name} schedule"))
        return tuple(needs)

    def compress(self, model: nn.Module, groups: ChannelGroups | None = None) -> PruningResult:
        """Mask `model` in place and say what was masked. `groups` saves finding the channel groups again.

        Nothing is left on the model but zeros: to keep them zero in a training, attach the result's masks.

        Raises:
            UserError: the evaluator lacks something that the settings need; selectors, ratios or blocks that don't fit.
            NothingPrunedError: nothing was removed though the ratios ask for it.
        """
        for capability, why in self.requirements(self.settings, self._importance):
            self.evaluator.require(capability, by=f"the {self._importance.name} pruner", why=why)
        with self.evaluator.bound(model):
            if self.settings.prunes_channels and groups is None:
                args, kwargs = self.evaluator.example_inputs(2)
                groups = find_channel_groups(
                    capture(model, args, kwargs, outputs=self.settings.outputs),
                    inside_heads="head_dim" in self.settings.granularities,
                    hidden="hidden" in self.settings.granularities,
                )
            plan = make_plan(model, self.settings, groups)
            shares = fractions(self.settings.schedule)
            at, self._resume = self._resume or Position(0, Removed({}, {})), None
            removed = at.removed
            if at.number:  # the training after removal `number` was cut off: the evaluator knows where
                self._train(self._masks(model, plan, removed, groups), at)
            for number, share in enumerate(shares[at.number :], start=at.number + 1):
                removed, allotments = self._remove(plan, share, removed)
                masks = self._masks(model, plan, removed, groups)
                exchange.check_equal("the masks", masks.keep, _UNEQUAL_MASKS)
                rows, unprunable, totals = describe(model, plan, allotments, share)
                removal = {name: indices for name, indices in removed.widths.items() if len(indices)}
                result = PruningResult(removal, masks, rows, unprunable, totals, groups)
                self._tell(result, number, len(shares))
                if number < len(shares):
                    self._train(masks, Position(number, removed))
            masks.apply(model)
        if not result.removed and result.asked > 0:
            reasons = "; ".join(result.reasons[:5]) or "the ratios are smaller than one channel group"
            raise NothingPrunedError(f"nothing was pruned: {reasons}")
        return result

    def _remove(self, plan: Plan, share: float, removed: Removed) -> tuple[Removed, dict[str, Allotment]]:
        """One removal: measure, allocate; what was removed before stays so."""
        scores = measure(
            self.evaluator,
            self._importance,
            tuple(target.width for target in plan.widths),
            {target.tensor: target.block for target in plan.tensors},
            training_steps=self.settings.importance.training_steps,
            seed=self.settings.importance.seed,
        )
        allotments: dict[str, Allotment] = {}
        compete = self.settings.allocation.name == "global"
        for units in self._pools(plan, scores, share, removed).values():
            allotted = allocate([unit for unit, _ in units], compete=compete)
            allotments |= {member: allotted[unit.name] for unit, members in units for member in members}
        widths = {target.width.name: allotments[target.width.name].removed for target in plan.widths}
        tensors = {target.tensor: allotments[target.tensor].removed for target in plan.tensors}
        return Removed(widths, tensors), allotments

    def _pools(
        self, plan: Plan, scores: Mapping[str, Scores], share: float, removed: Removed
    ) -> dict[Hashable, list[tuple[Unit, tuple[str, ...]]]]:
        """Units that share a budget: a target's, or a `global_group_id`'s; a unit may stand for several widths."""
        pools: dict[Hashable, list[tuple[Unit, tuple[str, ...]]]] = defaultdict(list)
        for members in _dependent(plan.widths):
            unit = self._width_unit(members, scores, share, removed)
            pools["channels", _pool(members[0])].append((unit, tuple(member.width.name for member in members)))
        for target in plan.tensors:
            gone = removed.tensors.get(target.tensor, np.empty(0, dtype=np.int64))
            own, alive = _without(scores[target.tensor], gone)
            own = normalize(own, self.settings.allocation.normalize or "none", alive)
            least, most = _bounds(target.settings, len(own), share, len(gone), 1.0)
            assert target.settings.sparse_ratio is not None
            unit = Unit(
                target.tensor,
                own,
                target.settings.sparse_ratio * share,
                cost=math.prod(target.block),
                least=least,
                most=most,
            )
            pools["weights", _pool(target)].append((unit, (target.tensor,)))
        return pools

    def _width_unit(
        self, members: Sequence[WidthTarget], scores: Mapping[str, Scores], share: float, removed: Removed
    ) -> Unit:
        first = members[0]
        gone = removed.widths.get(first.width.name, np.empty(0, dtype=np.int64))
        total = np.zeros(first.width.size)
        for member in members:
            own, alive = _without(scores[member.width.name], gone)
            total += normalize(own, self.settings.allocation.normalize or "mean", alive)
        ratio = first.settings.sparse_ratio
        assert ratio is not None
        least, most = _bounds(first.settings, first.width.size, share, len(gone), max(MOST_OF_A_WIDTH, ratio))
        round_to = self.settings.allocation.round_to
        return Unit(
            first.width.name,
            total,
            ratio * share,
            cost=sum(member.cost for member in members),
            step=max(rounding_step(round_to, m.width.size, m.channels_per_group) for m in members),
            least=least,
            most=most,
        )

    def _masks(self, model: nn.Module, plan: Plan, removed: Removed, groups: ChannelGroups | None) -> Masks:
        norms = () if groups is None else masked_norms(groups, removed.widths)
        masks = Masks.from_removal(model, [target.width for target in plan.widths], removed.widths, norms)
        keep: dict[str, Tensor] = {}
        for target in plan.tensors:
            shape = model.get_parameter(target.tensor).shape
            blocks = torch.ones(math.prod(shape) // math.prod(target.block), dtype=torch.bool)
            blocks[torch.from_numpy(removed.tensors[target.tensor])] = False
            keep[target.tensor] = spread_blocks(blocks, shape, target.block)
        return masks & Masks(keep) if keep else masks

    def state_dict(self) -> dict[str, Any]:
        """Which removal the training in progress follows, and what has been removed; see `load_state_dict`."""
        return self._at.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `compress` goes on with the training after that removal.

        The model's weights and the evaluator's own state are the caller's to restore.
        """
        self._resume = Position.from_state(state)

    def _train(self, masks: Masks, at: Position) -> None:
        self._at = at
        handle = masks.attach(self.evaluator)
        try:
            self.evaluator.train(max_steps=self.settings.schedule.interval_steps)
        finally:
            handle.remove()

    def _tell(self, result: PruningResult, number: int, count: int) -> None:
        place = f"removal {number} of {count}: " if count > 1 else ""
        self._listener(Note(f"{place}{result.summary}"))
        if number == count and result.reasons:
            more = f" (and {len(result.reasons) - 5} more)" if len(result.reasons) > 5 else ""
            self._listener(Note(f"less than asked: {'; '.join(result.reasons[:5])}{more}", warning=True))


def _dependent(widths: Sequence[WidthTarget]) -> list[tuple[WidthTarget, ...]]:
    """Widths that lose the same indices: those of one `dependency_group_id` together, the others alone."""
    together: dict[Hashable, list[WidthTarget]] = defaultdict(list)
    for target in widths:
        group = target.settings.dependency_group_id
        together[("width", target.width.name) if group is None else ("group", group)].append(target)
    for members in together.values():
        first = members[0]
        for other in members[1:]:
            key = f"targets.{other.target}.dependency_group_id"
            if other.width.size != first.width.size:
                raise ConfigError(
                    f"{other.width.name} has {other.width.size} channel groups and {first.width.name} "
                    f"{first.width.size}; widths that depend on each other must be equal",
                    key=key,
                )
            if other.settings.sparse_ratio != first.settings.sparse_ratio:
                raise ConfigError(
                    f"targets.{first.target} has the same dependency_group_id and another sparse_ratio", key=key
                )
    return [tuple(members) for members in together.values()]


def _pool(target: WidthTarget | TensorTarget) -> Hashable:
    group = target.settings.global_group_id
    return ("target", target.target) if group is None else ("group", group)


def _without(scores: Scores, gone: Indices) -> tuple[Scores, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Scores in which what is removed already comes first, and which groups are alive."""
    alive = np.ones(len(scores), dtype=np.bool_)
    alive[gone] = False
    return np.where(alive, scores, -np.inf), alive


def _bounds(settings: TensorSettings, size: int, share: float, gone: int, default_most: float) -> tuple[int, int]:
    """The least and the most groups to remove; the lower bound grows with the schedule, removed groups stay removed."""
    low = settings.min_sparse_ratio or 0.0
    high = default_most if settings.max_sparse_ratio is None else settings.max_sparse_ratio
    most = max(math.floor(high * size + 1e-9), gone)
    return min(max(math.ceil(low * share * size - 1e-9), gone), most), most
