"""The shipped training_func: epochs over the training data, with accumulation, clipping, validation and resumption."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.data_parallel import Alone
from nnicompress.evaluators.losses import LossReader, loss_of
from nnicompress.evaluators.precision import Precision, autocast
from nnicompress.evaluators.preserve import random_states, set_random_states
from nnicompress.evaluators.training_step import device_of, to_device
from nnicompress.events import EpochDone


@dataclass(frozen=True)
class Connection:
    """What an evaluator wants of the loop while it runs it."""

    step_done: Callable[[], None] = lambda: None
    """Called when a step is over, its scheduler's step included: the state is consistent here."""
    epoch_done: Callable[[EpochDone], None] = lambda event: None
    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Measures the model on the validation data; None validates nothing."""
    dry: bool = False
    """A run that trains nothing, and so doesn't use up epochs of the data."""
    parallel: Alone = Alone()
    """This process's part in the training, where several do it together."""


@dataclass
class _Position:
    """Where in the data a training is; `epoch` and `steps` count within it, `first_epoch` over all trainings."""

    first_epoch: int = 0
    epoch: int = 0
    batches: int = 0
    steps: int = 0
    epoch_start: dict[str, Any] | None = None


class TrainingLoop:
    """A `training_func` over the batches of a data role.

        for each epoch:
            for each window of `accumulate` batches:
                zero_grad
                for each batch: training_step, backward           # loss / number of batches in this window
                average the gradients over the processes          # where there are several
                clip the norm of the model's gradients to clip_norm
                optimizer.step, scheduler.step (interval "step")  # -> StepDone
            scheduler.step (interval "epoch")
            evaluate on the validation data                       # -> EpochDone

    The last window of an epoch may be smaller; its gradients are averaged over the batches it has. Batches are moved
    to the device of the model's parameters; several processes share each of them (`data_parallel`). Epochs are numbered
    on from one call to the next, so that a second training sees other orders and augmentations than the first.
    """

    def __init__(
        self,
        train_loader: Callable[[int], Iterable[Any]],
        *,
        seed: int = 0,
        interval: Literal["step", "epoch"] = "step",
        clip_norm: float | None = None,
        accumulate: int = 1,
        precision: Precision = "float32",
        validate_every: int = 1,
    ) -> None:
        """Say how to train.

        Args:
            train_loader: `seed -> batches`, e.g. a data object's method of this name. Where the loader's sampler has
                `set_epoch`, as DistributedSampler has, it is told the epoch.
            seed: passed to `train_loader`.
            interval: what schedulers are stepped after.
            clip_norm: the largest 2-norm of all gradients together.
            accumulate: batches per optimizer step.
            precision: `bfloat16` runs `training_step` under autocast.
            validate_every: epochs between evaluations on the validation data; 0 for none.
        """
        if accumulate < 1:
            raise UserError(f"accumulate {accumulate} is no number of batches; it is at least 1")
        self.train_loader, self.seed, self.interval = train_loader, seed, interval
        self.clip_norm, self.accumulate, self.precision = clip_norm, accumulate, precision
        self.validate_every = validate_every
        self._connection = Connection()
        self._position = _Position()
        self._resume: _Position | None = None
        self._num_batches: int | None = None
        self._asked_length = False

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None where the data have no length."""
        if not self._asked_length:
            self._num_batches, self._asked_length = _length(self.train_loader(self.seed)), True
        return None if self._num_batches is None else math.ceil(self._num_batches / self.accumulate)

    @contextmanager
    def connected(self, connection: Connection) -> Iterator[None]:
        """Calls in this block report to `connection`."""
        before = self._connection, self._position, self._resume
        self._connection = connection
        if connection.dry:
            self._resume = None
        try:
            yield
        finally:
            self._connection = before[0]
            if connection.dry:
                self._position, self._resume = before[1:]

    def __call__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        training_step: Callable[[Any, nn.Module], Any],
        lr_schedulers: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        """Train for `max_steps` optimizer steps or `max_epochs` epochs, whichever ends first.

        Raises:
            UserError: neither is given, or the data have no batches.
            JobError: the loss is not finite.
        """
        if max_steps is None and max_epochs is None:
            raise UserError("the shipped loop needs max_epochs or max_steps: train(max_epochs=3)")
        run = _Run(self, model, _as_list(optimizers), training_step, _as_list(lr_schedulers))
        resumed, self._resume = self._resume, None
        at = self._position = resumed or _Position(self._position.first_epoch + self._position.epoch)
        model.train()
        loader = self.train_loader(self.seed)
        run.parallel.begin(loader)
        if at.steps == max_steps and at.batches and at.batches == _length(loader):
            run.end_epoch(at)  # saved after the last step, which was the epoch's last, too
        while (max_epochs is None or at.epoch < max_epochs) and (max_steps is None or at.steps < max_steps):
            windows = self._windows(loader, at)
            for window in windows:
                run.step(window, at)
                if at.steps == max_steps:
                    break
            if at.batches == 0:
                raise UserError("the training data have no batches; check their size, batch_size and drop_last")
            if at.steps == max_steps and at.batches != _length(loader):
                break
            run.end_epoch(at)
        run.check_losses(wait=True)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data: consistent between two steps, which is when `Connection.step_done` is called."""
        return dict(vars(self._position))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next call goes on from there, with the random states that are set when it is called."""
        self._resume = _Position(**state)

    def _windows(self, loader: Iterable[Any], at: _Position) -> Iterator[list[Any]]:
        """Lists of up to `accumulate` batches of the epoch, from the position on."""
        set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(at.first_epoch + at.epoch)
        generator = getattr(loader, "generator", None)
        if at.batches == 0:
            at.epoch_start = {"random": random_states(), "loader": None if generator is None else generator.get_state()}
            batches = iter(loader)
        else:
            # The order was drawn when the epoch began: draw it again, pass over what is done, and go on from now.
            assert at.epoch_start is not None
            now = random_states()
            set_random_states(at.epoch_start["random"])
            if generator is not None:
                generator.set_state(at.epoch_start["loader"])
            batches = iter(loader)
            for _ in range(at.batches):
                next(batches)
            set_random_states(now)
        while window := list(itertools.islice(batches, self.accumulate)):
            yield window


class _Run:
    """One call of the loop: what stays the same from step to step."""

    def __init__(
        self,
        loop: TrainingLoop,
        model: nn.Module,
        optimizers: list[Optimizer],
        training_step: Callable[[Any, nn.Module], Any],
        schedulers: list[Any],
    ) -> None:
        self.loop, self.model, self.optimizers, self.schedulers = loop, model, optimizers, schedulers
        self.training_step, self.connection = training_step, loop._connection
        self.parallel = self.connection.parallel
        self.device, self.reader = device_of(model), LossReader()
        for scheduler in schedulers:
            validates = loop.validate_every == 1 and self.connection.evaluate is not None
            if isinstance(scheduler, ReduceLROnPlateau) and not (loop.interval == "epoch" and validates):
                raise UserError(
                    "ReduceLROnPlateau follows the validation metric of each epoch: it needs interval 'epoch', "
                    "validate_every=1 and an evaluating_func"
                )

    def step(self, window: list[Any], at: _Position) -> None:
        """One optimizer step over the batches of `window`."""
        loop = self.loop
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for index, whole in enumerate(window):
            batch = self.parallel.share(whole)
            if self.device.type != "cpu":
                batch = to_device(batch, self.device)
            place = at.first_epoch + at.epoch, at.batches + index
            with self.parallel.passes(place):
                with autocast(loop.precision, self.device):
                    loss = loss_of(self.training_step(batch, self.model))
                if not loss.requires_grad:
                    raise UserError(
                        "the loss depends on no parameter with requires_grad: call model.requires_grad_(True), or thaw "
                        "some of its layers"
                    )
                (loss if len(window) == 1 else loss / len(window)).backward()  # type: ignore[no-untyped-call]
            self.reader.put(loss, (at.steps + 1, at.epoch + 1))
        self.check_losses()
        self.parallel.meet()
        if loop.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), loop.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if loop.interval == "step":
            for scheduler in self.schedulers:
                scheduler.step()
        at.steps += 1
        at.batches += len(window)
        self.connection.step_done()

    def end_epoch(self, at: _Position) -> None:
        """Validate, and move on to the next epoch."""
        every, evaluate = self.loop.validate_every, self.connection.evaluate
        metrics = evaluate() if evaluate is not None and every and (at.epoch + 1) % every == 0 else {}
        if self.loop.interval == "epoch":
            for scheduler in self.schedulers:
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(metrics["default"])
                else:
                    scheduler.step()
        at.epoch, at.batches, at.epoch_start = at.epoch + 1, 0, None
        self.connection.epoch_done(EpochDone(at.epoch, metrics))

    def check_losses(self, *, wait: bool = False) -> None:
        """Raise a JobError for the first loss that is not finite, among those that have arrived."""
        for loss, (step, epoch) in self.reader.flush() if wait else self.reader.ready():
            if not math.isfinite(loss):
                if self.connection.dry:
                    raise JobError(
                        f"the loss is {loss} on batch {step}, and no weight was changed on the way there; look for "
                        "such values in the data and in the weights"
                    )
                rate = float(self.optimizers[0].param_groups[0]["lr"])
                raise JobError(
                    f"the loss is {loss} at step {step} (epoch {epoch}); lower the learning rate (it is {rate:g} now), "
                    "set clip_norm, or look for such values in the data"
                )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None
