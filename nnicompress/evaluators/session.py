"""One training, in whatever engine: its optimizer steps are counted and announced, its losses recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnicompress import exchange
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Penalty, StepEvent, StepHook
from nnicompress.evaluators.losses import LossReader, loss_of, with_loss
from nnicompress.evaluators.null_optimizer import NullOptimizer
from nnicompress.evaluators.penalties import PenaltyGradient
from nnicompress.evaluators.registry import Registry

_WITHOUT_LOSS = (
    "training_func made a step without calling the training_step that it was given; call that one, not your own: a "
    "compressor adds to its loss"
)


class LoopStopped(BaseException):
    """Leaves the user's loop before a step that nobody asked for.

    Not an Exception, so that no `except Exception` of the user's loop keeps it.
    """


@dataclass(frozen=True)
class Hooks:
    """What compressors have registered with an evaluator."""

    before_step: Registry[StepHook]
    after_step: Registry[StepHook]
    penalties: Registry[Penalty]


@dataclass(frozen=True)
class Step:
    """A step that is done and whose loss is known."""

    number: int
    loss: float
    learning_rate: float


class Session:
    """Watches a training through the optimizers' own step hooks and the losses that it is given.

    With several optimizers, steps are those of the first: it alone is counted and fires `before_step`. `after_step`
    fires after each optimizer's step, because each of them writes weights.

    Where several processes train together, a step's loss is the mean of theirs.

    A native loop is given `training_step`; an engine hands each loss that it will backpropagate to `take`, and says
    `step_over` when a step's business is done.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        training_step: Callable[[Any, nn.Module], Any] | None,
        hooks: Hooks,
        *,
        on_step: Callable[[Step], None],
        steps: int = 0,
        stop_at: int | None = None,
        closures: bool = False,
        without_loss: str = _WITHOUT_LOSS,
    ) -> None:
        """Watch a training of `model`.

        Args:
            model: the bound model.
            optimizers: the real ones or null ones; the first is counted.
            training_step: the user's, where a native loop runs it.
            hooks: fired around each step.
            on_step: told of each step that is over, in order, when its loss is there.
            steps: done before, in a training that is resumed.
            stop_at: the loop is left when it begins another step after so many.
            closures: the engine passes forward and backward to `optimizer.step` as a closure, called once a step.
            without_loss: what to say where a step is made and no loss was seen.
        """
        self.model, self.optimizers, self.hooks = model, tuple(optimizers), hooks
        self.steps, self.stop_at, self.stopped = steps, stop_at, False
        self.calls = 0
        self._training_step, self._on_step, self._closures = training_step, on_step, closures
        self._without_loss = without_loss
        # Batches of a frozen model can be looked at all the same: a calibration changes no weight.
        dry = any(isinstance(optimizer, NullOptimizer) for optimizer in self.optimizers)
        self._nothing_to_train = dry and not any(parameter.requires_grad for parameter in model.parameters())
        self._penalty = PenaltyGradient(hooks.penalties, len(self.optimizers))
        self._reader = LossReader()
        self._loss: Tensor | None = None
        self._num_losses = 0

    def run(self, call: Callable[[], object]) -> None:
        """Run the user's loop; leaving it at `stop_at` is no error here (`stopped` tells)."""
        with self.attached():
            try:
                call()
            except LoopStopped:
                self.stopped = True
        self.finish()

    def training_step(self, batch: Any, model: nn.Module) -> Any:
        """What the user's loop calls as `training_step`: returns what the user's own returned, of the same form."""
        assert self._training_step is not None
        self.step_over()
        output = self._training_step(batch, model)
        loss = loss_of(output)
        joined = self.take(loss)
        return output if joined is loss else with_loss(output, joined)

    def take(self, loss: Tensor, *, adds_up: bool = False) -> Tensor:
        """Record the loss of a batch that will be backpropagated; returns it with the penalties behind it.

        A step's loss is the mean of its batches' losses, or their sum where the engine divided them before (`adds_up`).
        """
        if self._nothing_to_train and torch.is_grad_enabled():
            loss = loss + torch.zeros((), device=loss.device, requires_grad=True)  # the loop's backward has an end
        if not loss.requires_grad:  # a measurement inside the loop, not a step of it
            return loss
        self.calls += 1
        self._num_losses = 1 if adds_up else self._num_losses + 1
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        return self._penalty.join(loss, self.model) if self.hooks.penalties else loss

    def step_over(self) -> None:
        """The last step's business is done, schedulers included: tell of the steps whose losses have arrived."""
        self._report(self._reader.ready())

    def finish(self) -> None:
        """The training is over: tell of all steps that are left, waiting for the last loss."""
        self._report(self._reader.flush())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The optimizers' steps inside this block are counted and announced."""
        handles = []
        for index, optimizer in enumerate(self.optimizers):
            handles.append(optimizer.register_step_pre_hook(self._before(index)))
            handles.append(optimizer.register_step_post_hook(self._after(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, index: int) -> Callable[[Optimizer, Any, Any], Any]:
        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
            if closure is not None and not self._closures:
                raise UserError(
                    f"training_func calls {type(optimizer).__name__}.step with a closure, inside which gradients and "
                    "weights can't be seen; call loss.backward() and then optimizer.step()"
                )
            if index == 0 and self.steps == self.stop_at:
                raise LoopStopped
            if closure is not None:  # the gradients are there only when it has been called
                announced = self._announced(closure, optimizer, index)
                if "closure" in kwargs:
                    return args, {**kwargs, "closure": announced}
                return (args[0], announced, *args[2:]), kwargs
            self._announce(index)
            return None

        return hook

    def _announce(self, index: int) -> None:
        if index == 0 and self.hooks.before_step:
            self._fire(self.hooks.before_step, self.steps + 1)

    def _announced(self, closure: Callable[[], Any], optimizer: Optimizer, index: int) -> Callable[[], Any]:
        called = False

        def announced() -> Any:
            nonlocal called
            if called:
                raise UserError(
                    f"{type(optimizer).__name__} calls its closure several times a step, between which masks can't be "
                    "enforced; use an optimizer with one step a gradient, such as SGD or AdamW"
                )
            called = True
            result = closure()
            self._announce(index)
            return result

        return announced

    def _after(self, index: int) -> Callable[[Optimizer, Any, Any], None]:
        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._penalty.optimizer_stepped(index)
            if index == 0:
                self.steps += 1
                if self._loss is None:
                    if not self.calls:
                        raise UserError(self._without_loss)
                else:
                    rate = optimizer.param_groups[0]["lr"]
                    loss = self._loss if self._num_losses == 1 else self._loss / self._num_losses
                    self._reader.put(
                        exchange.mean(loss), (self.steps, rate.item() if isinstance(rate, Tensor) else rate)
                    )
                    self._loss, self._num_losses = None, 0
            if self.hooks.after_step:
                self._fire(self.hooks.after_step, max(1, self.steps))

        return hook

    def _fire(self, hooks: Registry[StepHook], step: int) -> None:
        event = StepEvent(step, self.model)
        with torch.no_grad():
            for hook in hooks:
                hook(event)

    def _report(self, arrived: list[tuple[float, Any]]) -> None:
        for loss, (number, rate) in arrived:
            self._on_step(Step(number, loss, rate))
