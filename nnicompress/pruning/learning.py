"""Importances that are learned while the pruner trains: what accompanies its trainings beside the masks.

attach(evaluator, masks)        before each training of the pruner
scores()                        before each removal; None: `scores.measure` reads them off the weights
uncover(model)                  before each removal: weights behind masks come back, for the choice to be free
state_dict, load_state_dict     for a training that was cut off
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nnicompress.evaluators.contract import Evaluator, Handle, StepEvent
from nnicompress.graph.widths import Width
from nnicompress.pruning.importance import Importance
from nnicompress.pruning.masks import Attached, Masks
from nnicompress.pruning.norm_slots import NormSlots
from nnicompress.pruning.scores import Blocks, Scores, counted_slots, score_once
from nnicompress.pruning.settings import ImportanceSettings


class Learning(Protocol):
    """See the module."""

    releases: bool
    """Whether what was removed may come back at the next removal."""

    def attach(self, evaluator: Evaluator, masks: Masks) -> Handle:
        """Accompany the trainings until the handle is removed; the masks hold meanwhile."""

    def scores(self) -> dict[str, Scores] | None:
        """What was learned so far."""

    def uncover(self, model: nn.Module) -> None:
        """Give `model` the weights that lie behind the masks."""

    def state_dict(self) -> dict[str, Any]:
        """As tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def make_learning(
    importance: Importance, settings: ImportanceSettings, widths: tuple[Width, ...], blocks: Blocks
) -> Learning | None:
    """What accompanies the trainings of a pruner with this importance; None where nothing does."""
    if importance.learning == "scale_penalty":
        return ScalePenalty(widths, settings.penalty)
    if importance.moves:
        return Movement(importance, widths, blocks, penalty=settings.penalty, rate=settings.score_rate)
    return None


class ScalePenalty:
    """The L1 norm of the scales behind the layers to prune, times `strength`, beside the loss (Liu et al. 2017)."""

    releases = False

    def __init__(self, widths: tuple[Width, ...], strength: float) -> None:
        self._widths, self._strength = widths, strength

    def attach(self, evaluator: Evaluator, masks: Masks) -> Handle:
        """Add the penalty's gradient to every step."""
        norms = NormSlots.of_model(evaluator.model)
        names = {slot.tensor for width in self._widths for slot in counted_slots(width, "scales", norms)}
        parameters = dict(evaluator.model.named_parameters())
        scales = [parameters[name] for name in sorted(names)]

        def penalty(model: nn.Module) -> Tensor:
            return self._strength * torch.stack([scale.abs().sum() for scale in scales]).sum()

        handles = [masks.attach(evaluator)]
        if scales:
            handles.append(evaluator.add_penalty(penalty))
        return Attached(handles)

    def scores(self) -> None:
        """None: the scales themselves are the scores."""

    def uncover(self, model: nn.Module) -> None:
        """Nothing lies behind the masks."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all of it is in the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class Movement:
    """Sums up -gradient * weight over the steps, for weights behind masks too (Sanh et al. 2020, section 4).

    The forward sees masked weights, so a masked weight's gradient is that of the straight-through estimator: it goes
    into the score, and not into the weight. Between two steps the model holds the masked weights; those behind the
    masks are kept here, and lie in the model only while the optimizer makes its step.

    With a `penalty` (soft movement) each score also loses penalty * sigmoid'(score) a step, which is the descent on
    the sum of the scores' sigmoids; `scores` are the sigmoids then.
    """

    releases = True

    def __init__(
        self, importance: Importance, widths: tuple[Width, ...], blocks: Blocks, *, penalty: float, rate: float
    ) -> None:
        # One step's sum is linear in the elements: what a group makes of it comes after the last step.
        self._step = Importance(importance.elements, needs_gradient=True, scope=importance.scope, name=importance.name)
        self._of_group = importance.of_group
        self._widths, self._blocks = widths, blocks
        self._penalty, self._rate = penalty, rate
        self._learned: dict[str, Scores] = {}
        self._behind: dict[str, Tensor] = {}

    def attach(self, evaluator: Evaluator, masks: Masks) -> Handle:
        """Learn in every step."""
        parameters = dict(evaluator.model.named_parameters())
        masked = {name: parameters[name] for name in masks.keep}
        removed = {name: ~keep.to(parameters[name].device) for name, keep in masks.keep.items()}
        between_steps = True

        @torch.no_grad()
        def cover() -> None:
            self._behind = {name: parameter.detach().clone() for name, parameter in masked.items()}
            masks.apply(evaluator.model)

        @torch.no_grad()
        def before(event: StepEvent) -> None:
            nonlocal between_steps
            self.uncover(evaluator.model, removed)
            between_steps = False
            self._add(score_once(evaluator.model, self._step, self._widths, self._blocks))
            for name, parameter in masked.items():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(removed[name], 0)

        def after(event: StepEvent) -> None:
            nonlocal between_steps
            if between_steps:  # another optimizer's step
                masks.apply(evaluator.model)
            else:
                between_steps = True
                cover()

        if not self._behind:
            cover()
        masks.apply(evaluator.model)
        return Attached(
            [evaluator.before_step(before), evaluator.after_step(after), evaluator.before_evaluate(masks.apply)]
        )

    @torch.no_grad()
    def uncover(self, model: nn.Module, removed: Mapping[str, Tensor] | None = None) -> None:
        """Give `model` the weights that lie behind the masks (all that were kept, where `removed` names none)."""
        for name, weight in self._behind.items():
            parameter = model.get_parameter(name)
            kept = weight.to(parameter.device)
            parameter.copy_(kept if removed is None else torch.where(removed[name], kept, parameter))
        if removed is None:
            self._behind = {}

    def scores(self) -> dict[str, Scores]:
        """The sums; their sigmoids where the importance says so."""
        return {name: self._of_group(torch.from_numpy(own)).numpy() for name, own in self._learned.items()}

    def _add(self, step: Mapping[str, Scores]) -> None:
        for name, gain in step.items():
            score = self._learned.get(name, np.zeros_like(gain))
            sigmoid = 1 / (1 + np.exp(-score))
            self._learned[name] = score + self._rate * gain - self._rate * self._penalty * sigmoid * (1 - sigmoid)

    def state_dict(self) -> dict[str, Any]:
        """The scores and the weights behind the masks."""
        learned = {name: torch.from_numpy(own) for name, own in self._learned.items()}
        return {"learned": learned, "behind": dict(self._behind)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._learned = {name: own.numpy() for name, own in state["learned"].items()}
        self._behind = dict(state["behind"])
