"""The evaluator for native PyTorch: runs the user's own loop, or the shipped one, on whatever model is bound."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators import demands
from nnicompress.evaluators.contract import ModelInput, Penalty, StepHook, TrainResult
from nnicompress.evaluators.inputs import FirstForward, as_model_input, resized
from nnicompress.evaluators.loop import Connection, TrainingLoop
from nnicompress.evaluators.preserve import no_gradients, same_random_states, same_tensors, same_training_mode
from nnicompress.evaluators.rebuild import OptimizerGiven, OwnGroup, Rebuilder
from nnicompress.evaluators.registry import Registration, Registry
from nnicompress.evaluators.session import Hooks, Session
from nnicompress.evaluators.training import STATE_VERSION, Loop, Training
from nnicompress.evaluators.training_step import device_of, to_device
from nnicompress.events import Listener, Note, silent
from nnicompress.trace import Traced, parameter_names

TrainingStep = Callable[[Any, nn.Module], Any]
TrainingFunc = Callable[[nn.Module, Any, TrainingStep, Any, "int | None", "int | None"], object]

_TRAINING = ("training_func", "optimizers", "training_step")
_NEEDS = {
    "train": _TRAINING,
    "iterate": _TRAINING,
    "evaluate": ("evaluating_func",),
    "example_inputs": ("dummy_input",),
}
_LOOP_ARGUMENTS = ("model", "optimizers", "training_step", "lr_schedulers", "max_steps", "max_epochs")


class TorchEvaluator:
    """Runs the user's training and evaluation; the contract is `nnicompress.evaluators.contract.Evaluator`.

    Only what a compressor uses must be given. A training_func that has an attribute `steps_per_epoch` (an int) tells
    how many optimizer steps it makes in an epoch: schedulers that need a number of steps can then be built for
    `max_epochs`, and the epochs are checked.
    """

    def __init__(
        self,
        training_func: TrainingFunc | None = None,
        optimizers: OptimizerGiven | Sequence[OptimizerGiven] | None = None,
        training_step: TrainingStep | None = None,
        lr_schedulers: Traced | Sequence[Traced] | None = None,
        dummy_input: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
        evaluating_func: Callable[..., Any] | None = None,
        *,
        listener: Listener = silent,
    ) -> None:
        """Package a training and an evaluation.

        Args:
            training_func: the loop, `(model, optimizers, training_step, lr_schedulers, max_steps, max_epochs)`. It is
                given one optimizer or scheduler where one was given here, else a list; `lr_schedulers` may be None.
            optimizers: how they are built: `trace(SGD)(model.parameters(), lr=0.1)`, one or several.
            training_step: `(batch, model)` to a loss, a tuple that begins with it or a mapping with key `loss`.
            lr_schedulers: how they are built: `trace(StepLR)(step_size=30)`, one or several.
            dummy_input: a tensor, a tuple or a dict for the model's forward; without it the first batch serves.
            evaluating_func: `model` to a float or a mapping with key `default`. If it has a parameter `split`, it is
                given `validation` or `test` by name; else it measures the same for both.
            listener: told of progress.

        Raises:
            UserError: an argument that can't work, by name.
        """
        self.training_func, self.training_step, self.evaluating_func = training_func, training_step, evaluating_func
        self._rebuilder = Rebuilder(optimizers, lr_schedulers)
        self._dummy_input = None if dummy_input is None else as_model_input(dummy_input)
        self._listener = listener
        if training_func is not None:
            demands.check_signature(training_func, "training_func", _LOOP_ARGUMENTS)
        if training_step is not None:
            demands.check_signature(training_step, "training_step", ("batch", "model"))
        self._split: tuple[str, ...] = ()
        if evaluating_func is not None:
            self._split = ("split",) if "split" in parameter_names(evaluating_func) else ()
            demands.check_signature(evaluating_func, "evaluating_func", ("model",), *self._split)
        self._hooks = Hooks(Registry(), Registry(), Registry())
        self._before_evaluate: Registry[Callable[[nn.Module], None]] = Registry()
        self._parameters: Registry[OwnGroup] = Registry()
        self._model: nn.Module | None = None
        self._training: Training | None = None
        self._resume: Mapping[str, Any] | None = None
        self._epochs_done: dict[int, int] = {}

    @property
    def model(self) -> nn.Module:
        """The bound model."""
        if self._model is None:
            raise UserError("no model is bound to the evaluator; do this inside `with evaluator.bound(model):`")
        return self._model

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `train`, `iterate`, `evaluate`, `example_inputs` can be served; `resume` with the shipped loop."""
        resume = {"resume"} if isinstance(self.training_func, TrainingLoop) else set()
        return frozenset(name for name in _NEEDS if not self._missing(name)) | resume

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        """Bind `model`; at the end it is unbound, and whatever was registered in between is forgotten.

        Raises:
            UserError: a trainable parameter is in no group or in two, or is sharded; another model is bound.
        """
        if self._model is not None:
            raise UserError("a model is already bound to this evaluator; one at a time")
        self._rebuilder.check(model, tuple(self._parameters))
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
        """Run the training_func on the bound model, with optimizers and schedulers built afresh for it.

        After `load_state_dict` the numbers asked for include what was done before.

        Raises:
            UserError: the loop makes more steps than asked (it is stopped at about twice as many), none at all, or
                ignores `max_epochs`. Fewer steps than asked are a warning.
        """
        self.require("train", by="train()", why="it runs the training loop")
        for name, value in (("max_steps", max_steps), ("max_epochs", max_epochs)):
            if value is not None and value < 1:
                raise UserError(f"{name}={value} asks for no training; it is at least 1")
        resume, self._resume = self._resume, None
        self._training = Training(
            self._loop(),
            self.model,
            self._hooks,
            tuple(self._parameters),
            self._listener,
            max_steps=max_steps,
            max_epochs=max_epochs,
            resume=resume,
        )
        evaluate = self.evaluate if self.evaluating_func is not None else None
        # Gradients from before mean nothing to the changed weights, and a loop may expect to start without any.
        self._clear_gradients()
        try:
            with same_training_mode(self.model):
                result, warning = self._training.run(evaluate, self._epochs_done)
        finally:
            self._clear_gradients()
        if warning:
            self._warn(warning)
        return result

    def iterate(self, num_batches: int) -> None:
        """Run the training_func on optimizers that move nothing, for `num_batches` steps.

        A batch is what the loop takes for one optimizer step. Step hooks fire; afterwards parameters, buffers,
        gradients, training modes and the global random states are as before. A loop that would go on is left.
        """
        self.require("iterate", by="iterate()", why="it runs the training loop's forward and backward passes")
        if num_batches < 1:
            raise UserError(f"iterate({num_batches}): at least one batch is needed")
        session = self._dry_run(num_batches)
        warning = demands.check_steps(session.steps, False, demands.step_budget(num_batches, None, None))
        if warning:
            self._warn(warning)

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """Measure the bound model with evaluating_func; training modes and random states stay as they are."""
        self.require("evaluate", by="evaluate()", why="it measures the model")
        if split not in ("validation", "test"):
            raise UserError(f"no split {split!r}; there are 'validation' and 'test'")
        assert self.evaluating_func is not None
        with same_training_mode(self.model), same_random_states():
            self._fire_before_evaluate()
            value = self.evaluating_func(self.model, **dict.fromkeys(self._split, split))
        return _measured(value)

    def example_inputs(self, batch_size: int | None = None) -> ModelInput:
        """The dummy_input, or the inputs of the model's first call in the training_func, on the model's device."""
        self.require("example_inputs", by="example_inputs()", why="it needs real inputs of the model's forward")
        if self._dummy_input is not None:
            return resized(to_device(self._dummy_input, device_of(self.model)), batch_size)

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise FirstForward((args, kwargs))

        handle = self.model.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
        try:
            self._dry_run(1)
        except FirstForward as found:
            return resized(found.inputs, batch_size)
        finally:
            handle.remove()
        raise UserError("training_func never calls the model, so it shows no inputs; give dummy_input")

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
        if not self._rebuilder.optimizers:
            raise UserError("add_parameters(): the evaluator has no optimizers; give TorchEvaluator(optimizers=...)")
        return self._parameters.add((named, settings))

    def require(self, capability: str, *, by: str, why: str) -> None:
        """Raise a UserError that names `by`, the missing arguments and `why`, unless `capability` can be served."""
        missing = self._missing(capability)
        if missing:
            arguments = ", ".join(f"{name}=..." for name in missing)
            raise UserError(f"{by} needs {' and '.join(missing)}: {why}; give TorchEvaluator({arguments})")

    def state_dict(self) -> dict[str, Any]:
        """The state of the training in progress, or of the last one while its model is still bound.

        It is consistent between two steps: take it when a `StepDone` arrives. `torch.load(weights_only=True)` reads it.

        Raises:
            UserError: there was no training.
        """
        if self._training is None:
            raise UserError("no training state: take it during a training, or after it while the model is bound")
        self._fire_before_evaluate()
        return self._training.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `train` goes on from `state`; the model's own weights are the caller's to restore."""
        if state.get("version") != STATE_VERSION:
            raise UserError(
                f"the training state has version {state.get('version')!r}; this program reads {STATE_VERSION}"
            )
        self._resume = state

    def _missing(self, capability: str) -> tuple[str, ...]:
        assert capability in _NEEDS, f"no capability {capability!r}"
        if capability == "example_inputs" and (self._dummy_input is not None or not self._missing("iterate")):
            return ()
        given: dict[str, object] = {
            "training_func": self.training_func,
            "optimizers": self._rebuilder.optimizers or None,
            "training_step": self.training_step,
            "evaluating_func": self.evaluating_func,
            "dummy_input": self._dummy_input,
        }
        return tuple(name for name in _NEEDS[capability] if given[name] is None)

    def _loop(self) -> Loop:
        assert self.training_func is not None and self.training_step is not None
        return Loop(self.training_func, self.training_step, self._rebuilder)

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

    def _dry_run(self, num_steps: int) -> Session:
        """Run the loop on optimizers that move nothing, and leave it where it would make another step."""
        loop, model = self._loop(), self.model
        optimizers, schedulers = self._rebuilder.build(
            model, tuple(self._parameters), lambda: loop.scheduler_steps(num_steps, None), dry=True
        )
        session = Session(
            model, optimizers, loop.training_step, self._hooks, on_step=lambda step: None, stop_at=num_steps
        )
        with same_tensors(model), no_gradients(model, *self._own()), same_training_mode(model), same_random_states():
            loop.run(session, schedulers, Connection(dry=True), num_steps, None)
        return session


def _measured(value: Any) -> dict[str, float]:
    """What an evaluating_func returned, as a mapping with the key `default`."""

    def number(name: str, found: Any) -> float:
        if isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1):
            return float(found.detach() if isinstance(found, Tensor) else found)
        raise UserError(
            f"evaluating_func returned {type(found).__name__}{name}; it must be a float or a dict of floats"
        )

    if not isinstance(value, Mapping):
        return {"default": number("", value)}
    if "default" not in value:
        raise UserError(f"evaluating_func returned a dict without the key 'default'; it has {sorted(map(str, value))}")
    return {str(name): number(f" for {name!r}", found) for name, found in value.items()}
