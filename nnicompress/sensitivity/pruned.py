"""Layers pruned: the channels of least importance are zero, as they are before `shrink` removes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from nnicompress.evaluators.contract import Evaluator
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import Indices, Width
from nnicompress.pruning.allocation import Unit, allocate
from nnicompress.pruning.importance import importance_of
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.scores import Scores, measure
from nnicompress.pruning.settings import ImportanceSettings
from nnicompress.sensitivity.probe import Subject


class PrunedProbe:
    """Prunes widths: what is pruned together, as the convolutions that add into one stream are, is one subject."""

    def __init__(
        self, model: nn.Module, widths: Sequence[Width], scores: Mapping[str, Scores], ratios: Sequence[float]
    ) -> None:
        self.model = model
        self.ratios = {f"{ratio:g}": ratio for ratio in ratios}
        self.widths = {width.name: width for width in widths}
        self.scores = scores
        self.subjects = tuple(_subject(width) for width in widths)

    @classmethod
    def of(cls, evaluator: Evaluator, importance: ImportanceSettings, ratios: Sequence[float]) -> PrunedProbe:
        """The probe of the evaluator's bound model, whose importances are measured here, once."""
        args, kwargs = evaluator.example_inputs(2)
        widths = find_channel_groups(capture(evaluator.model, args, kwargs)).widths
        scores = measure(
            evaluator,
            importance_of(importance),
            widths,
            {},
            training_steps=importance.training_steps,
            seed=importance.seed,
        )
        return cls(evaluator.model, widths, scores, ratios)

    @property
    def levels(self) -> tuple[str, ...]:
        """The ratios."""
        return tuple(self.ratios)

    def removed(self, name: str, level: str) -> Indices:
        """The channel groups of width `name` that go: as many as come nearest to the ratio, the least important."""
        unit = Unit(name, self.scores[name], self.ratios[level])
        return allocate([unit], compete=False)[name].removed

    @contextmanager
    @torch.no_grad()
    def applied(self, subjects: Sequence[Subject], level: str) -> Iterator[bool]:
        """Zero the channels in every tensor that they live in; see `Probe.applied`."""
        removal = {subject.name: self.removed(subject.name, level) for subject in subjects}
        masks = Masks.from_removal(self.model, [self.widths[name] for name in removal], removal)
        before = {name: self.model.get_parameter(name).detach().clone() for name in masks.keep}
        masks.apply(self.model)
        try:
            yield masks.removed > 0
        finally:
            for name, tensor in before.items():
                self.model.get_parameter(name).copy_(tensor)


def _subject(width: Width) -> Subject:
    tensors = tuple(dict.fromkeys(slot.tensor for slot in width.producers or width.slots))
    return Subject(width.name, tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors)), tensors)
