"""The evaluator for native PyTorch: runs the user's own loop, or the shipped one, on whatever model is bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnicompress import distributed
from nnicompress.errors import UserError
from nnicompress.evaluators import demands
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.contract import ModelInput, TrainResult
from nnicompress.evaluators.data_parallel import Alone, DataParallel
from nnicompress.evaluators.inputs import FirstForward
from nnicompress.evaluators.loop import Connection, TrainingLoop
from nnicompress.evaluators.preserve import no_gradients, same_random_states, same_tensors, same_training_mode
from nnicompress.evaluators.rebuild import OptimizerGiven, Rebuilder
from nnicompress.evaluators.session import Session
from nnicompress.evaluators.training import Loop, Training
from nnicompress.events import Listener, silent
from nnicompress.trace import Traced, parameter_names

TrainingStep = Callable[[Any, nn.Module], Any]
TrainingFunc = Callable[[nn.Module, Any, TrainingStep, Any, "int | None", "int | None"], object]

_LOOP_ARGUMENTS = ("model", "optimizers", "training_step", "lr_schedulers", "max_steps", "max_epochs")


class TorchEvaluator(EvaluatorBase):
    """Runs the user's training and evaluation; the contract is `nnicompress.evaluators.contract.Evaluator`.

    Only what a compressor uses must be given. A training_func that has an attribute `steps_per_epoch` (an int) tells
    how many optimizer steps it makes in an epoch: schedulers that need a number of steps can then be built for
    `max_epochs`, and the epochs are checked.
    """

    ENGINE = "torch"
    NEEDS: ClassVar = {
        "train": ("training_func", "optimizers", "training_step"),
        "iterate": ("training_func", "optimizers", "training_step"),
        "evaluate": ("evaluating_func",),
        "example_inputs": ("dummy_input",),
    }

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
        super().__init__(dummy_input, listener)
        self.training_func, self.training_step, self.evaluating_func = training_func, training_step, evaluating_func
        self._rebuilder = Rebuilder(optimizers, lr_schedulers)
        if training_func is not None:
            demands.check_signature(training_func, "training_func", _LOOP_ARGUMENTS)
        if training_step is not None:
            demands.check_signature(training_step, "training_step", ("batch", "model"))
        self._split: tuple[str, ...] = ()
        if evaluating_func is not None:
            self._split = ("split",) if "split" in parameter_names(evaluating_func) else ()
            demands.check_signature(evaluating_func, "evaluating_func", ("model",), *self._split)
        self._epochs_done: dict[int, int] = {}

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `train`, `iterate`, `evaluate`, `example_inputs` can be served; `resume` with the shipped loop."""
        return super().capabilities | ({"resume"} if isinstance(self.training_func, TrainingLoop) else set())

    def _check(self, model: nn.Module) -> None:
        """Every trainable parameter is in exactly one group, and none is sharded."""
        super()._check(model)
        self._rebuilder.check(model, tuple(self._parameters))

    def _given(self) -> Mapping[str, object]:
        return {
            "training_func": self.training_func,
            "optimizers": self._rebuilder.optimizers or None,
            "training_step": self.training_step,
            "evaluating_func": self.evaluating_func,
            "dummy_input": self._dummy_input,
        }

    def _train(
        self, max_steps: int | None, max_epochs: int | None, resume: Mapping[str, Any] | None
    ) -> tuple[TrainResult, str | None]:
        """Run the training_func; it is stopped at about twice as many steps as it was asked for."""
        if max_steps is None and max_epochs is None:  # a loop of one's own might never end
            raise UserError("train() needs max_epochs or max_steps: train(max_epochs=3)")
        self._training = training = Training(
            self._loop(),
            self.model,
            self._hooks,
            tuple(self._parameters),
            self._listener,
            max_steps=max_steps,
            max_epochs=max_epochs,
            resume=resume,
            parallel=self._parallel(),
        )
        return training.run(self.evaluate if self.evaluating_func is not None else None, self._epochs_done)

    def _iterate(self, num_batches: int) -> str | None:
        session = self._dry_run(num_batches, self._parallel())
        return demands.check_steps(session.steps, False, demands.step_budget(num_batches, None, None))

    def _measure(self, split: str) -> dict[str, float]:
        assert self.evaluating_func is not None
        return _measured(self.evaluating_func(self.model, **dict.fromkeys(self._split, split)))

    def _first_inputs(self) -> ModelInput:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise FirstForward((args, kwargs))

        handle = self.model.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
        try:
            self._dry_run(1, Alone())  # whole batches: the inputs are the same with any number of processes
        except FirstForward as found:
            return found.inputs
        finally:
            handle.remove()
        raise UserError("training_func never calls the model, so it shows no inputs; give dummy_input")

    def _loop(self) -> Loop:
        assert self.training_func is not None and self.training_step is not None
        return Loop(self.training_func, self.training_step, self._rebuilder)

    def _parallel(self) -> Alone:
        """This process's part in a training; a training_func of the user's own sees to its processes itself."""
        together = distributed.world_size() > 1 and isinstance(self.training_func, TrainingLoop)
        return DataParallel(self.model, self._own()) if together else Alone()

    def _dry_run(self, num_steps: int, parallel: Alone) -> Session:
        """Run the loop on optimizers that move nothing, and leave it where it would make another step."""
        loop, model = self._loop(), self.model
        optimizers, schedulers = self._rebuilder.build(
            model, tuple(self._parameters), lambda: loop.scheduler_steps(num_steps, None), dry=True
        )
        session = Session(
            model,
            optimizers,
            parallel.weighted(loop.training_step),
            self._hooks,
            on_step=lambda step: None,
            stop_at=num_steps,
        )
        with same_tensors(model), no_gradients(model, *self._own()), same_training_mode(model), same_random_states():
            loop.run(session, schedulers, Connection(dry=True, parallel=parallel), num_steps, None)
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
