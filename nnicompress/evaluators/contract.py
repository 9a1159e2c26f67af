"""The contract between an evaluator and all that compresses: what each may ask of the other.

    with evaluator.bound(model):                  # bind ... unbind; afterwards nothing of ours is left on the model
        evaluator.iterate(num_batches)            # forward and backward, no weight changes
            before_step hooks                     #   gradients are there
        evaluator.train(max_epochs=3)
            for each optimizer step:
                before_step hooks                 #   gradients are there, weights are old
                optimizer.step()
                after_step hooks                  #   weights are new: masks are enforced here
            before_evaluate hooks                 # before each evaluation
        evaluator.evaluate() -> {"default": 0.97}

A compressor never contains a training loop: it registers hooks here and asks the evaluator to train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

ModelInput = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of the model's forward."""


class Handle(Protocol):
    """What a registration returns; `remove` undoes it, twice is harmless."""

    def remove(self) -> None:
        """Undo the registration."""


@dataclass(frozen=True)
class StepEvent:
    """Given to step hooks: `step` counts the inner optimizer's steps of this training from 1."""

    step: int
    model: nn.Module


StepHook = Callable[[StepEvent], None]
Penalty = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class TrainResult:
    """What a training did: optimizer steps, epochs where known, the losses (one a step) and metrics (one an epoch)."""

    steps: int
    epochs: float | None
    losses: tuple[float, ...]
    metrics: tuple[Mapping[str, float], ...] = ()


@runtime_checkable
class Evaluator(Protocol):
    """The user's training and evaluation, packaged so that a compressor can run it on a changed model."""

    @property
    def model(self) -> nn.Module:
        """The bound model; raises where none is bound."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `train`, `iterate`, `evaluate`, `example_inputs`, `resume` this evaluator can serve.

        `resume`: a training that goes on from `state_dict` ends with the same bits as one that was not cut off.
        """

    def bound(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Bind `model` (rebuild optimizers for it, by parameter name) and unbind it at the end, leaving no trace.

        Whatever was registered while it was bound is forgotten then.
        """

    def train(self, *, max_steps: int | None = None, max_epochs: int | None = None) -> TrainResult:
        """Run the user's training on the bound model with fresh optimizers and schedulers."""

    def iterate(self, num_batches: int) -> None:
        """Run `num_batches` training batches forward and backward with hooks, changing no weight, buffer or seed."""

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """Measure the bound model; the mapping has the key `default`. `split` is `validation` or `test`."""

    def example_inputs(self, batch_size: int | None = None) -> ModelInput:
        """Real inputs of the model's forward, of the first batch, cut or repeated to `batch_size`."""

    def before_step(self, hook: StepHook) -> Handle:
        """Call `hook` with the gradients there, before every step of the (first) inner optimizer, without autograd."""

    def after_step(self, hook: StepHook) -> Handle:
        """Call `hook` after every step of every inner optimizer, without autograd; `step` counts the first one's."""

    def before_evaluate(self, hook: Callable[[nn.Module], None]) -> Handle:
        """Call `hook` before each evaluation and each `state_dict`, without autograd."""

    def add_penalty(self, penalty: Penalty) -> Handle:
        """Add the gradient of `penalty(model)` once an optimizer step, before clipping."""

    def add_parameters(self, parameters: Iterable[tuple[str, nn.Parameter]], **settings: Any) -> Handle:
        """Give the compressor's own parameters to the (first) optimizer, in a group of their own, weight decay 0."""

    def require(self, capability: str, *, by: str, why: str) -> None:
        """Raise a UserError that names compressor `by`, the missing argument and `why`, unless it can be served."""

    def state_dict(self) -> dict[str, Any]:
        """The training state (optimizers, schedulers, counters, random states) of the training in progress or done."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, for the next `train`, whose `max_steps` and `max_epochs` include it."""
