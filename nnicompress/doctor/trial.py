"""An evaluator and its model, built anew for each check, and what the checks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.doctor.checks import Missing, Wrong
from nnicompress.doctor.snapshot import changed, copied
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.preserve import random_states
from nnicompress.events import Listener, silent
from nnicompress.pipeline.seeding import seed_everything

CAPABILITIES = {
    "train": "nothing can be trained between removals or fine-tuned",
    "iterate": "importance from gradients can't be measured",
    "evaluate": "nothing is measured",
    "example_inputs": "the model can't be captured, so no channels can be removed",
    "resume": "a killed training begins its stage again",
}
"""What an evaluator may serve -> what is not possible without it."""


@dataclass(frozen=True)
class Trial:
    """An evaluator and a model that fits it, both new."""

    evaluator: Evaluator
    model: nn.Module

    @property
    def weight(self) -> tuple[str, nn.Parameter]:
        """A trainable parameter that checks act on, with its name: the largest."""
        trainable = [item for item in self.model.named_parameters() if item[1].requires_grad]
        if not trainable:
            raise Missing("the model has no trainable parameter")
        return max(trainable, key=lambda item: item[1].numel())


class EvaluatorSubject:
    """Builds the evaluator anew for each check, because an evaluator may remember its earlier trainings."""

    def __init__(self, build: Callable[[Listener], tuple[Evaluator, nn.Module]]) -> None:
        self._build = build

    def trial(self, listener: Listener = silent) -> Trial:
        """The same evaluator and model each time."""
        seed_everything(0)
        evaluator, model = self._build(listener)
        seed_everything(0)
        return Trial(evaluator, model)

    @contextmanager
    def bound(self, listener: Listener = silent) -> Iterator[Trial]:
        """A trial with its model bound."""
        trial = self.trial(listener)
        with trial.evaluator.bound(trial.model):
            yield trial

    @property
    def capabilities(self) -> frozenset[str]:
        """What the evaluator says that it can serve."""
        return frozenset(self.trial().evaluator.capabilities)


class Cut(Exception):
    """Ends a training from inside."""


def cut(*event: object) -> None:
    """A hook that ends a training."""
    raise Cut


@contextmanager
def stopped_by(kind: type[BaseException]) -> Iterator[None]:
    """Like contextlib.suppress, which type checkers take for a block that always ends well."""
    try:
        yield
    except kind:
        return


def needs(subject: EvaluatorSubject, capability: str) -> None:
    """Raise Missing where the evaluator can't serve `capability`."""
    if capability not in subject.capabilities:
        raise Missing(f"not served: {CAPABILITIES[capability]}")


def unchanged(model: nn.Module, what: str, action: Callable[[], None]) -> None:
    """Raise Wrong where `action` changes a weight, a buffer, a training mode or a random state."""
    tensors, states = copied(model), random_states()
    modes = {name: module.training for name, module in model.named_modules()}
    action()
    if moved := changed(tensors, copied(model)):
        raise Wrong(f"{what} changes {listed(moved)}")
    if switched := [name for name, module in model.named_modules() if module.training is not modes[name]]:
        raise Wrong(f"{what} leaves another training mode: {listed([name or 'the model' for name in switched])}")
    if drawn := [name for name, state in random_states().items() if not _same(state, states[name])]:
        raise Wrong(f"{what} moves the random state of {listed(drawn)}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def listed(names: list[str]) -> str:
    """The first three names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
