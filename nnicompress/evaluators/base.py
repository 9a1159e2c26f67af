"""What the evaluators of all engines share: the bound model, what compressors register, and what may be asked."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from nnicompress import distributed
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import ModelInput, Penalty, StepHook, TrainResult
from nnicompress.evaluators.inputs import as_model_input, resized
from nnicompress.evaluators.optimizers import refuse_sharded
from nnicompress.evaluators.preserve import same_random_states, same_training_mode
from nnicompress.evaluators.rebuild import OwnGroup
from nnicompress.evaluators.record import EngineTraining
from nnicompress.evaluators.registry import Registration, Registry
from nnicompress.evaluators.session import Hooks
from nnicompress.evaluators.training_step import device_of, to_device
from nnicompress.events import Listener, Note, silent

STATE_VERSION = 2
SPLITS = ("validation", "test")


class EvaluatorBase(ABC):
    """The half of `contract.Evaluator` that no engine changes.

    An engine says what it trains and measures with (`_train`, `_iterate`, `_measure`, `_first_inputs`), which arguments
    each capability takes (`NEEDS`, `_given`), and looks at a model before it is bound (`_check`).
    """

    ENGINE: ClassVar[str]
    """Its name in recipes: `torch`."""
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Capability -> the arguments of the constructor that serve it."""

    def __init__(self, dummy_input: Any, listener: Listener) -> None:
        self._dummy_input = None if dummy_input is None else as_model_input(dummy_input)
        self._listener = listener
        self._hooks = Hooks(Registry(), Registry(), Registry())
        self._before_evaluate: Registry[Callable[[nn.Module], None]] = Registry()
        self._parameters: Registry[OwnGroup] = Registry()
        self._model: nn.Module | None = None
        self._training: EngineTraining | None = None
        """The training in progress, or the last one while its model is bound."""
        self._resume: Mapping[str, Any] | None = None

    # ------------------------------------------------------------------------------------------- what an engine gives

    @abstractmethod
    def _given(self) -> Mapping[str, object]:
        """The constructor's arguments by name; None where one was not given."""

    @abstractmethod
    def _train(
        self, max_steps: int | None, max_epochs: int | None, resume: Mapping[str, Any] | None
    ) -> tuple[TrainResult, str | None]:
        """Train the bound model; returns the result and a warning. Sets `_training` before the first step."""

    @abstractmethod
    def _iterate(self, num_batches: int) -> str | None:
        """Run batches on optimizers that move nothing; returns a warning. Everything is as before afterwards."""

    @abstractmethod
    def _measure(self, split: str) -> Mapping[str, float]:
        """Measure the bound model."""

    @abstractmethod
    def _first_inputs(self) -> ModelInput:
        """The inputs of the model's forward in the first training batch."""

    def _check(self, model: nn.Module) -> None:
        """Raise a UserError where `model` can't be bound."""
        refuse_sharded(model)

    # --------------------------------------------------------------------------------------------------- the contract

    @property
    def model(self) -> nn.Module:
        """The bound model."""
        if self._model is None:
            raise UserError("no model is bound to the evaluator; do this inside `with evaluator.bound(model):`")
        return self._model

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `train`, `iterate`, `evaluate`, `example_inputs` can be served, and `resume`."""
        return frozenset(name for name in self.NEEDS if not self._missing(name))

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        """Bind `model`; at the end it is unbound, and whatever was registered in between is forgotten.

        Raises:
            UserError: the engine can't train this model (a parameter that is in no group, is sharded ...); another
                model is bound.
        """
        if self._model is not None:
            raise UserError("a model is already bound to this evaluator; one at a time")
        self._check(model)
        registries = (*vars(self._hooks).values(), self._before_evaluate, self._parameters)
        before = [registry.keys() for registry in registries]
        self._model = model
        try:
            yield model
        finally:
            self._model = self._training = None
            for registry, keys in zip(registries, before, strict=True):
                registry.keep_only(keys)

    def train(self, *, max_steps: int | None = None, max_epochs: int | None = None) -> TrainResult:
        """Run the user's training on the bound model, with optimizers and schedulers built afresh for it.

        After `load_state_dict` the numbers asked for include what was done before.

        Raises:
            UserError: the training makes more steps than asked, or none at all. Fewer steps than asked are a warning.
        """
        self.require("train", by="train()", why="it runs the training loop")
        for name, value in (("max_steps", max_steps), ("max_epochs", max_epochs)):
            if value is not None and value < 1:
                raise UserError(f"{name}={value} asks for no training; it is at least 1")
        resume, self._resume = self._resume, None
        # Gradients from before mean nothing to the changed weights, and a loop may expect to start without any.
        self._clear_gradients()
        try:
            with same_training_mode(self.model):
                result, warning = self._train(max_steps, max_epochs, resume)
        finally:
            self._clear_gradients()
        if warning:
            self._warn(warning)
        return result

    def iterate(self, num_batches: int) -> None:
        """Run the user's training on optimizers that move nothing, for `num_batches` steps.

        A batch is what the loop takes for one optimizer step. Step hooks fire; afterwards parameters, buffers,
        gradients, training modes and the global random states are as before. A loop that would go on is left.
        """
        self.require("iterate", by="iterate()", why="it runs the training loop's forward and backward passes")
        if num_batches < 1:
            raise UserError(f"iterate({num_batches}): at least one batch is needed")
        if warning := self._iterate(num_batches):
            self._warn(warning)

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """Measure the bound model; training modes and random states stay as they are.

        Where several processes train together, all of them call this, and all get what the main one measured.
        """
        self.require("evaluate", by="evaluate()", why="it measures the model")
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; there are 'validation' and 'test'")
        with same_training_mode(self.model), same_random_states():
            self._fire_before_evaluate()
            measured = dict(self._measure(split))
        return distributed.from_main(lambda: measured)

    def example_inputs(self, batch_size: int | None = None) -> ModelInput:
        """The dummy_input, or the inputs of the model's first call in the training, on the model's device."""
        self.require("example_inputs", by="example_inputs()", why="it needs real inputs of the model's forward")
        if self._dummy_input is not None:
            return resized(to_device(self._dummy_input, device_of(self.model)), batch_size)
        return resized(self._first_inputs(), batch_size)

    def before_step(self, hook: StepHook) -> Registration:
        """Call `hook` before each step of the first optimizer, without autograd."""
        return self._hooks.before_step.add(hook)

    def after_step(self, hook: StepHook) -> Registration:
        """Call `hook` after each step of each optimizer, without autograd."""
        return self._hooks.after_step.add(hook)

    def before_evaluate(self, hook: Callable[[nn.Module], None]) -> Registration:
        """Call `hook` before each evaluation and each `state_dict`, without autograd."""
        return self._before_evaluate.add(hook)

    def add_penalty(self, penalty: Penalty) -> Registration:
        """Add the gradient of `penalty(model)` once an optimizer step, before clipping (`penalties.py` says how)."""
        return self._hooks.penalties.add(penalty)

    def add_parameters(self, parameters: Iterable[tuple[str, nn.Parameter]], **settings: Any) -> Registration:
        """Give parameters to the first optimizer of the next `train`, in a group with `settings`, weight decay 0."""
        named = tuple(parameters)
        if not named:
            raise UserError("add_parameters() was given no parameters")
        self.require("train", by="add_parameters()", why="it gives them to an optimizer")
        return self._parameters.add((named, settings))

    def require(self, capability: str, *, by: str, why: str) -> None:
        """Raise a UserError that names `by`, the missing arguments and `why`, unless `capability` can be served."""
        missing = self._missing(capability)
        if missing:
            arguments = ", ".join(f"{name}=..." for name in missing)
            raise UserError(f"{by} needs {' and '.join(missing)}: {why}; give {type(self).__name__}({arguments})")

    def state_dict(self) -> dict[str, Any]:
        """The state of the training in progress, or of the last one while its model is still bound.

        It is consistent between two steps: take it when a `StepDone` arrives. `torch.load(weights_only=True)` reads it.

        Raises:
            UserError: there was no training.
        """
        if self._training is None:
            raise UserError("no training state: take it during a training, or after it while the model is bound")
        self._fire_before_evaluate()
        return {"version": STATE_VERSION, "engine": self.ENGINE, **self._training.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `train` goes on from `state`; the model's own weights are the caller's to restore."""
        if state.get("version") != STATE_VERSION:
            raise UserError(
                f"the training state has version {state.get('version')!r}; this program reads {STATE_VERSION}"
            )
        if state["engine"] != self.ENGINE:
            raise UserError(f"the training state is one of the {state['engine']} evaluator, and this is {self.ENGINE}")
        self._resume = state

    # -------------------------------------------------------------------------------------------------- for the engines

    def _missing(self, capability: str) -> tuple[str, ...]:
        assert capability in self.NEEDS, f"no capability {capability!r}"
        if capability == "example_inputs" and (self._dummy_input is not None or not self._missing("iterate")):
            return ()
        given = self._given()
        return tuple(name for name in self.NEEDS[capability] if given[name] is None)

    def _own(self) -> list[nn.Parameter]:
        """The compressors' own parameters."""
        return [parameter for named, _ in self._parameters for _, parameter in named]

    def _clear_gradients(self) -> None:
        for parameter in (*self.model.parameters(), *self._own()):
            parameter.grad = None

    def _fire_before_evaluate(self) -> None:
        with torch.no_grad():
            for hook in self._before_evaluate:
                hook(self.model)

    def _warn(self, text: str) -> None:
        """Tell the listener; where nobody listens, Python's warnings."""
        self._listener(Note(text, warning=True))
        if self._listener is silent:
            warnings.warn(text, stacklevel=3)
