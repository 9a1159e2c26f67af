"""The pruner: importance x granularity x allocation x schedule, around the user's training.

train training_steps, scores are learned        only where the importance learns: learning.py
for each removal of the schedule:               one_shot: a single one
    for each part of the plan:                  all of it, or block by block: block_by_block.py
        scores     <- importance over batches   scores.py, importance.py
        removal    <- scores and ratios         allotment.py, allocation.py; with a budget: budget.py
        masks      <- removal                   masks.py
    first weights come back                     only for lottery_ticket, which trains before the first removal, too
    train interval_steps, masks enforced        (not after the last)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import distributed, exchange
from nnicompress.errors import NothingPrunedError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener, Note, silent
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import ChannelGroups
from nnicompress.pruning.allotment import Allotments, Allotter, Ask, require_effect
from nnicompress.pruning.block_by_block import Show, parts, sequences_of
from nnicompress.pruning.blocks import AUTO
from nnicompress.pruning.budget import Budget, fewest_changes, scales_around
from nnicompress.pruning.chain import Chain
from nnicompress.pruning.granularity import spread_blocks
from nnicompress.pruning.importance import IMPORTANCES, Importance, importance_of
from nnicompress.pruning.learning import Learning, make_learning
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.norms import masked_norms
from nnicompress.pruning.plan import Plan, make_plan
from nnicompress.pruning.result import Position, Removed, describe
from nnicompress.pruning.result import PruningResult as PruningResult
from nnicompress.pruning.schedule import Growth, growths
from nnicompress.pruning.scores import Scores, checked, measure, require_norms
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.tensors import all_tensors, set_tensors

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
        self._resume: Mapping[str, Any] | None = None
        self._origin: dict[str, Tensor] | None = None
        self._learning: Learning | None = None

    @staticmethod
    def requirements(settings: PrunerSettings, importance: Importance | None = None) -> tuple[tuple[str, str], ...]:
        """The capabilities that a pruner with these settings asks of an evaluator, each with what it is for."""
        importance = IMPORTANCES[settings.importance.name] if importance is None else importance
        needs: list[tuple[str, str]] = []
        if settings.prunes_channels:
            needs.append(("example_inputs", "to follow the model's channels through one forward"))
        if importance.needs_gradient:
            needs.append(("iterate", f"to gather the gradients of {importance.name} importance"))
        if importance.inputs is not None:
            needs.append(("iterate", f"to gather the layers' inputs for {importance.name} importance"))
        if importance.learning is not None:
            needs.append(("train", f"to learn {importance.name} importance"))
        if settings.schedule.name != "one_shot":
            needs.append(("train", f"to train between the removals of the {settings.schedule.name} schedule"))
        return tuple(needs)

    def check(self, model: nn.Module) -> Plan:
        """What would be pruned; blocks that are named are tried on one batch, nothing is measured, masked or trained.

        Raises:
            UserError: what `compress` would raise before it begins; a target of which nothing would be removed; blocks
                that aren't there, or can't be pruned one after the other.
            JobError: the forward can't be captured, or a width has not the norm that the importance scores.
        """
        self._require()
        importance = self.settings.importance
        with self.evaluator.bound(model):
            plan = make_plan(model, self.settings, self._groups_of(model))
            require_effect(model, self.settings, plan)
            require_norms(model, self._importance, plan.to_score()[0])
            if importance.blocks != AUTO:
                for name, blocks in sequences_of(self.evaluator, importance).items():
                    Chain.record(self.evaluator, name, blocks, 1)
        return plan

    def compress(self, model: nn.Module, groups: ChannelGroups | None = None) -> PruningResult:
        """Mask `model` in place and say what was masked. `groups` saves finding the channel groups again.

        Nothing is left on the model but zeros: to keep them zero in a training, attach the result's masks.

        Raises:
            UserError: the evaluator lacks something that the settings need; selectors, ratios or blocks that don't fit.
            NothingPrunedError: nothing was removed though the ratios ask for it.
        """
        self._require()
        with self.evaluator.bound(model):
            groups = self._groups_of(model) if groups is None else groups
            plan = make_plan(model, self.settings, groups)
            steps = growths(self.settings.schedule)
            self._begin(model, plan)
            removed = self._at.removed
            # Either the training after removal `number` was cut off, and the evaluator knows where, or there is one
            # before the first removal.
            if self._at.number or self._learning is not None or self._origin is not None:
                self._train(self._masks(model, plan, removed, groups), self._at)
            for number, grow in enumerate(steps[self._at.number :], start=self._at.number + 1):
                removed, result = self._remove(plan, groups, grow, removed)
                self._tell(result, number, len(steps))
                self._rewind(model)
                if number < len(steps):
                    self._train(result.masks, Position(number, removed))
            result.masks.apply(model)
        if not result.removed and result.asked > 0:
            reasons = "; ".join(result.reasons[:5]) or "the ratios are smaller than one channel group"
            raise NothingPrunedError(f"nothing was pruned: {reasons}")
        return result

    def _require(self) -> None:
        for capability, why in self.requirements(self.settings, self._importance):
            self.evaluator.require(capability, by=f"the {self._importance.name} pruner", why=why)

    def _groups_of(self, model: nn.Module) -> ChannelGroups | None:
        """The channel groups of the bound model; None where no channels are pruned."""
        if not self.settings.prunes_channels:
            return None
        args, kwargs = self.evaluator.example_inputs(2)
        return find_channel_groups(
            capture(model, args, kwargs, outputs=self.settings.outputs),
            inside_heads="head_dim" in self.settings.granularities,
            hidden="hidden" in self.settings.granularities,
        )

    def _remove(
        self, plan: Plan, groups: ChannelGroups | None, grow: Growth, removed: Removed
    ) -> tuple[Removed, PruningResult]:
        """One removal: measure, allot, mask; what was removed before stays so, unless the importance releases it."""
        model = self.evaluator.model
        if self._learning is not None:
            self._learning.uncover(model)
            if self._learning.releases:
                removed = Removed({}, {})
        allotted = Allotments({}, {})
        for part, show in parts(self.evaluator, plan, self._importance, self.settings.importance, self._listener):
            scores = self._scores(part, show)
            comparable = self._importance.comparable
            allotter = Allotter(model, part, self.settings.allocation, scores, removed, comparable=comparable)
            ask, own = self._allot(part, groups, allotter, grow)
            allotted |= own
            if part is not plan:  # the parts behind it see it pruned
                self._masks(model, part, own.removed(part), groups).apply(model)
        removed = allotted.removed(plan)
        masks = self._masks(model, plan, removed, groups)
        exchange.check_equal("the masks", masks.keep, _UNEQUAL_MASKS)
        rows, unprunable, totals = describe(model, plan, allotted.of, allotted.ratios, ask.of_unprunable)
        removal = {name: indices for name, indices in removed.widths.items() if len(indices)}
        return removed, PruningResult(removal, masks, rows, unprunable, totals, groups)

    def _begin(self, model: nn.Module, plan: Plan) -> None:
        """Take up what the trainings need, from the start or from where an earlier run was cut off."""
        self._learning = make_learning(self._importance, self.settings.importance, *plan.to_score())
        rewinds = self.settings.schedule.name == "lottery_ticket"
        self._origin = {n: t.detach().clone() for n, t in all_tensors(model).items()} if rewinds else None
        self._at = Position(0, Removed({}, {}))
        state, self._resume = self._resume, None
        if state is not None:
            self._at = Position.from_state(state)
            self._origin = state["origin"]
            if self._learning is not None:
                self._learning.load_state_dict(state["learning"])

    def _allot(
        self, plan: Plan, groups: ChannelGroups | None, allotter: Allotter, grow: Growth
    ) -> tuple[Ask, Allotments]:
        """What this removal asks for and takes; where a budget is given, the least that meets it."""
        target = self.settings.target
        if target is None:
            ask = Ask(grow)
            return ask, allotter(ask)
        assert groups is not None, "a budget needs channel granularities"
        budget = Budget(target, self.evaluator.model, groups, self.evaluator.example_inputs(1))
        ratios = [width.settings.sparse_ratio for width in plan.widths]
        largest = max((ratio for ratio in ratios if ratio is not None), default=1.0) or 1.0

        goal = 1 - grow(1 - target.remaining)

        def at(scale: float) -> Allotments:
            return allotter(Ask(grow, scale, largest))

        def remaining(allotted: Allotments) -> float:
            return budget.remaining(allotted.removed(plan).widths)

        def search() -> tuple[float, Allotments]:
            low, high = scales_around(lambda scale: remaining(at(scale)), goal, kind=target.kind)
            fewer, more = at(low), at(high)
            changes = allotter.changes(fewer, more)
            return high, fewest_changes(fewer, more, changes, lambda allotted: remaining(allotted) <= goal)

        # Latencies differ from process to process; what the main one decides the others follow.
        scale, allotted = distributed.from_main(search)
        self._listener(Note(f"{remaining(allotted):.1%} of the {target.kind} remain (asked: {goal:.1%})"))
        # What the budget needs is what is asked, be the scale that found it 0 since earlier removals were enough.
        shares = {w.width.name: len(allotted.of[w.width.name].removed) / w.width.size for w in plan.widths}
        return Ask(grow, scale, largest), Allotments(allotted.of, allotted.ratios | shares)

    def _rewind(self, model: nn.Module) -> None:
        if self._origin is not None:
            set_tensors(model, self._origin)

    def _scores(self, plan: Plan, show: Show | None) -> dict[str, Scores]:
        learned = None if self._learning is None else self._learning.scores()
        if learned is not None:
            return checked(learned, self._importance, batches=1)
        importance = self.settings.importance
        return measure(
            self.evaluator,
            self._importance,
            *plan.to_score(),
            training_steps=importance.training_steps,
            seed=importance.seed,
            show=show,
        )

    def _masks(self, model: nn.Module, plan: Plan, removed: Removed, groups: ChannelGroups | None) -> Masks:
        norms = () if groups is None else masked_norms(groups, removed.widths)
        masks = Masks.from_removal(model, [target.width for target in plan.widths], removed.widths, norms)
        keep: dict[str, Tensor] = {}
        for target in plan.tensors:
            if target.tensor not in removed.tensors:  # before the first removal
                continue
            shape = model.get_parameter(target.tensor).shape
            blocks = torch.ones(math.prod(shape) // math.prod(target.block), dtype=torch.bool)
            blocks[torch.from_numpy(removed.tensors[target.tensor])] = False
            keep[target.tensor] = spread_blocks(blocks, shape, target.block)
        return masks & Masks(keep) if keep else masks

    def state_dict(self) -> dict[str, Any]:
        """Which removal the training in progress follows, and what has been removed; see `load_state_dict`."""
        learning = {} if self._learning is None else self._learning.state_dict()
        return {**self._at.state_dict(), "learning": learning, "origin": self._origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `compress` goes on with the training after that removal.

        The model's weights and the evaluator's own state are the caller's to restore.
        """
        self._resume = state

    def _train(self, masks: Masks, at: Position) -> None:
        self._at = at
        learning = self._learning
        handle = masks.attach(self.evaluator) if learning is None else learning.attach(self.evaluator, masks)
        first = at.number == 0 and learning is not None
        steps = self.settings.importance.training_steps if first else self.settings.schedule.interval_steps
        try:
            self.evaluator.train(max_steps=steps)
        finally:
            handle.remove()

    def _tell(self, result: PruningResult, number: int, count: int) -> None:
        place = f"removal {number} of {count}: " if count > 1 else ""
        self._listener(Note(f"{place}{result.summary}"))
        if number == count and result.reasons:
            more = f" (and {len(result.reasons) - 5} more)" if len(result.reasons) > 5 else ""
            self._listener(Note(f"less than asked: {'; '.join(result.reasons[:5])}{more}", warning=True))
