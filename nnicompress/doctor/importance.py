"""The contract of an importance (`pruning/importance.py`): a pure, finite, deterministic function of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from nnicompress.doctor.checks import Check, Missing, Wrong
from nnicompress.doctor.sample import SampleNet, sample_evaluator
from nnicompress.graph import capture, find_channel_groups
from nnicompress.pipeline.seeding import seed_everything
from nnicompress.pruning.importance import Importance, Scope
from nnicompress.pruning.learning import make_learning
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.norm_slots import NormSlots
from nnicompress.pruning.scores import counted_slots, measure
from nnicompress.pruning.settings import ImportanceSettings

SHAPES = ((6,), (6, 5), (6, 5, 3, 3))
"""A bias, a linear layer's weight, a convolution's."""


@dataclass(frozen=True)
class ImportanceSubject:
    """The importance; each check makes its own weights and gradients."""

    importance: Importance

    @property
    def elements(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The function itself."""
        if self.importance.elements is None:
            raise Missing("elements is None, which means scores drawn at random")
        return self.importance.elements

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """One score an element, called as the pruner calls it."""
        with torch.no_grad():
            given = gradient if self.importance.reads_evidence else torch.zeros(())
            if self.importance.inputs is not None:
                given = self.importance.inputs.of_mean(self.importance.inputs.of_values(gradient))
            return self.elements(weight, given)

    def group(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """One score for each index of dimension 0."""
        scores = self.score(weight, gradient)
        with torch.no_grad():
            return self.importance.of_group(scores.double().reshape(len(weight), -1).sum(1))


def _inputs(scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights and gradients of each shape, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        yield scale * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def is_importance(subject: ImportanceSubject) -> str:
    """The parts of an Importance are of the right kind."""
    own = subject.importance
    if not (own.elements is None or callable(own.elements)) or not callable(own.of_group):
        raise Wrong("elements and of_group are functions: Importance(elements, of_group)")
    if own.scope not in get_args(Scope):
        raise Wrong(f"scope is one of {', '.join(get_args(Scope))}, not {own.scope!r}")
    if not isinstance(own.needs_gradient, bool):
        raise Wrong(f"needs_gradient is True or False, not {own.needs_gradient!r}")
    return f"{own.name}, scope {own.scope}, {_EVIDENCE[own.needs_gradient, own.reads_evidence]}"


_EVIDENCE = {(True, True): "with gradients", (False, False): "without gradients", (False, True): "with other evidence"}


def keeps_shape(subject: ImportanceSubject) -> str:
    """One score an element, as floating-point numbers."""
    for weight, gradient in _inputs():
        scores = subject.score(weight, gradient)
        if not isinstance(scores, Tensor) or scores.shape != weight.shape:
            shown = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise Wrong(f"a weight of shape {list(weight.shape)} gets scores of shape {shown}")
        if not scores.is_floating_point():
            raise Wrong(f"scores are {scores.dtype}, not floating point")
        if (groups := subject.group(weight, gradient)).shape != (len(weight),):
            raise Wrong(f"of_group gives shape {list(groups.shape)} for {len(weight)} groups")
    return f"as the weight's, in {', '.join(str(len(shape)) for shape in SHAPES)} dimensions"


def is_finite(subject: ImportanceSubject) -> str:
    """No NaN and no infinity, for ordinary, tiny, large and zero weights."""
    for scale in (1.0, 1e-8, 1e4, 0.0):
        for weight, gradient in _inputs(scale):
            if not bool(torch.isfinite(subject.score(weight, gradient)).all()):
                raise Wrong(f"scores of weights of size {scale:g} are not all finite")
            if not bool(torch.isfinite(subject.group(weight, gradient)).all()):
                raise Wrong(f"of_group is not finite for weights of size {scale:g}")
    return "weights of size 0 to 10,000"


def takes_zero_gradients(subject: ImportanceSubject) -> str:
    """A dead channel has gradient zero; the score is finite."""
    for weight, gradient in _inputs():
        if not bool(torch.isfinite(subject.score(weight, torch.zeros_like(gradient))).all()):
            raise Wrong("scores for gradients of zero are not finite")
    return "finite"


def is_pure(subject: ImportanceSubject) -> str:
    """Weight and gradient are the model's own: they may not be written to."""
    for weight, gradient in _inputs():
        before = weight.clone(), gradient.clone()
        subject.score(weight, gradient)
        for name, old, new in (("weight", before[0], weight), ("gradient", before[1], gradient)):
            if not torch.equal(old, new):
                raise Wrong(f"the function changes the {name} that it is given")
    return "inputs stay as they are"


def is_deterministic(subject: ImportanceSubject) -> str:
    """The same inputs give the same scores, and no random number is drawn."""
    for weight, gradient in _inputs():
        torch.manual_seed(0)
        state = torch.get_rng_state()
        first = subject.score(weight.clone(), gradient.clone())
        if not torch.equal(state, torch.get_rng_state()):
            raise Wrong("the function draws random numbers")
        if not torch.equal(first, subject.score(weight.clone(), gradient.clone())):
            raise Wrong("the same weight and gradient get other scores the second time")
    return "the same scores each time"


def gradient_is_honest(subject: ImportanceSubject) -> str:
    """Without needs_gradient the gradient is not read; with it, it is."""
    differs = False
    for weight, gradient in _inputs():
        with torch.no_grad():
            first = subject.elements(weight, gradient)
            second = subject.elements(weight, 3 * gradient + 1)
        differs |= not torch.equal(first, second)
    if differs and not subject.importance.reads_evidence:
        raise Wrong("needs_gradient is False, and the scores depend on the gradient, which is zero then")
    if not differs and subject.importance.reads_evidence:
        raise Wrong("needs_gradient is True, and the scores don't depend on the gradient: batches are run for nothing")
    return "needs gradients and reads them" if differs else "needs none and reads none"


def scales(subject: ImportanceSubject) -> str:
    """A channel of zeros is missed least, and larger weights are not missed less."""
    if subject.importance.moves:
        return "not asked: movement has a sign"
    for weight, gradient in _inputs():
        small, large = subject.group(weight, gradient), subject.group(10 * weight, gradient)
        nothing = subject.group(torch.zeros_like(weight), gradient)
        if bool((small < 0).any()):
            raise Wrong("scores of groups are negative: widths are compared by their mean, which has to be positive")
        if bool((nothing > small).any()):
            raise Wrong("a channel of zeros scores higher than one that is not zero")
        if bool((large < small).any()):
            raise Wrong("ten times larger weights with the same gradient score lower")
    return "0 scores lowest, larger weights not lower, no group negative"


def ranks_a_model(subject: ImportanceSubject) -> str:
    """On a real model, data and gradients, the channels of each width get different scores."""
    seed_everything(0)
    model: nn.Module = SampleNet()
    evaluator = sample_evaluator(model)
    with evaluator.bound(model):
        args, kwargs = evaluator.example_inputs(2)
        norms, own = NormSlots.of_model(model), subject.importance
        found = find_channel_groups(capture(model, args, kwargs)).widths
        widths = tuple(width for width in found if counted_slots(width, own.scope, norms))
        learning = make_learning(own, ImportanceSettings(), widths, {})
        if learning is not None:
            learning.attach(evaluator, Masks({}))
            evaluator.train(max_steps=2)
        learned = None if learning is None else learning.scores()
        scores = measure(evaluator, own, widths, {}, training_steps=2) if learned is None else learned
    for width in widths:
        if len(set(scores[width.name].tolist())) == 1:
            raise Wrong(f"all {width.size} channels of {width.name} get the same score")
    return ", ".join(f"{width.size} channels of {width.name}" for width in widths)


IMPORTANCE_CHECKS: tuple[Check[ImportanceSubject], ...] = (
    Check("kind", is_importance, "Importance(elements, of_group, needs_gradient=..., scope=..., name=...)"),
    Check(
        "shape", keeps_shape, "return one score for each element of the weight; of_group, one for each sum", ("kind",)
    ),
    Check("finite", is_finite, "divide by no norm that may be zero; add a small number below", ("shape",)),
    Check("zero gradients", takes_zero_gradients, "divide by no gradient", ("finite",)),
    Check("pure", is_pure, "work on copies: use abs() and not abs_(), a * b and not a *= b", ("shape",)),
    Check("deterministic", is_deterministic, "draw no random numbers and keep no state between calls", ("shape",)),
    Check("gradients", gradient_is_honest, "set needs_gradient to what the function reads", ("deterministic",)),
    Check("scale", scales, "larger means missed more; let of_group make sums positive (torch.square)", ("finite",)),
    Check("real model", ranks_a_model, "look at what it returns for the convolutions of a model", ("finite", "pure")),
)
