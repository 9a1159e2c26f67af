"""The user's Trainer, made ready for one fit or measurement and put back afterwards."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from nnicompress import distributed
from nnicompress.errors import UserError, did_you_mean
from nnicompress.evaluators.lightning.package import Package, quiet, refuse_sharding
from nnicompress.evaluators.lightning.put_back import same_attributes
from nnicompress.trace import Traced, parameter_names, unknown_argument

_WAY_OUT = "trainer=nnicompress.trace(Trainer)(accelerator='cpu', max_epochs=3)"
_SHARDED_NAMES = ("fsdp", "deepspeed", "modelparallel", "model_parallel")

_OF_NULL_OPTIMIZERS = (
    "Seems like `optimizer.step\\(\\)` has been overridden after learning rate scheduler initialization",
    "Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`",
)
"""What schedulers say of an optimizer that stands in for the one they were built for."""


@dataclass(frozen=True)
class Limits:
    """The steps and epochs asked of one fit; both None: the Trainer's own."""

    max_steps: int | None = None
    max_epochs: int | None = None


class TrainerSource:
    """A Trainer for every fit.

    A traced one is built afresh each time, with its callbacks and loggers. A built one is borrowed: it gets fresh loops
    for each fit, and afterwards its attributes, its callbacks' and its strategy's are what they were. Both are used in
    the same way, so a dry run is the user's own Trainer without its callbacks, loggers and validation.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        package = Package.of(given.cls if isinstance(given, Traced) else given)
        if package is None or isinstance(given, type):
            raise UserError(f"trainer is {_described(given)}, and no Lightning Trainer; write {_WAY_OUT}")
        built: type = package.get("Trainer")
        if isinstance(given, Traced):
            if not (isinstance(given.cls, type) and issubclass(given.cls, built)):
                raise UserError(f"trainer: {given.name} is no Lightning Trainer; write {_WAY_OUT}")
            self._check_arguments(given)
        elif not isinstance(given, built):
            raise UserError(f"trainer is a {type(given).__name__}, and no Lightning Trainer; write {_WAY_OUT}")
        else:
            refuse_sharding(self.given.strategy)
        self.package = package

    @contextmanager
    def training(self, limits: Limits, around: tuple[Any, Any]) -> Iterator[Any]:
        """For a training, with the user's callbacks and loggers; `around` are callbacks that come first and last."""
        with self._ready() as trainer:
            self._limit(trainer, limits)
            trainer.callbacks = list(self._of_user(trainer, checkpoints=True))
            put_around(trainer, around, self.package)
            yield trainer

    @contextmanager
    def dry(self, num_steps: int, around: tuple[Any, Any]) -> Iterator[Any]:
        """For gradients alone: without validation, callbacks and loggers."""
        with self._ready() as trainer:
            for message in _OF_NULL_OPTIMIZERS:
                warnings.filterwarnings("ignore", message=message)
            self._limit(trainer, Limits(max_steps=num_steps))
            trainer.callbacks, trainer.loggers = list(around), []
            trainer.limit_val_batches = trainer.num_sanity_val_steps = 0
            yield trainer

    @contextmanager
    def measuring(self) -> Iterator[Any]:
        """For a measurement, without loggers; the user's callbacks may log what is measured."""
        with self._ready() as trainer:
            trainer.callbacks, trainer.loggers = list(self._of_user(trainer, checkpoints=False)), []
            yield trainer

    @contextmanager
    def _ready(self) -> Iterator[Any]:
        with ExitStack() as stack:
            stack.enter_context(quiet())
            if isinstance(self.given, Traced):
                trainer = self._built(stack.enter_context(tempfile.TemporaryDirectory()))
                refuse_sharding(trainer.strategy)
            else:
                trainer = self.given
                stack.enter_context(same_attributes(*_parts(trainer)))
            if trainer.world_size > distributed.world_size():
                raise UserError(
                    f"the Trainer would start {trainer.world_size} processes in the middle of a run; start all of them "
                    f"at once: torchrun --nproc-per-node {trainer.world_size} -m nnicompress run ..., or devices=1"
                )
            _fresh_loops(trainer)
            yield trainer

    def _built(self, folder: str) -> Any:
        traced = self.given
        given = {**dict(zip(parameter_names(traced.cls), traced.args, strict=False)), **traced.kwargs}
        silence = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "enable_checkpointing": self._has_checkpoint(given.get("callbacks")),
            "default_root_dir": folder,
        }
        more = {
            name: value
            for name, value in silence.items()
            if given.get(name) is None and unknown_argument(traced.cls, name) is None
        }
        if given.get("barebones"):
            more = {"default_root_dir": folder}
        try:
            return traced.build(**more)
        except (TypeError, ValueError, self.package.get("utilities.exceptions.MisconfigurationException")) as error:
            raise UserError(f"{traced.name} can't be built: {error}") from error

    def _has_checkpoint(self, callbacks: Any) -> bool:
        checkpoint = self.package.get("callbacks.Checkpoint")
        given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        classes = [one.cls if isinstance(one, Traced) else type(one) for one in given]
        return any(isinstance(cls, type) and issubclass(cls, checkpoint) for cls in classes)

    def _of_user(self, trainer: Any, *, checkpoints: bool) -> Iterator[Any]:
        """The user's callbacks; of a built Trainer not those that Lightning adds on its own."""
        if isinstance(self.given, Traced):
            added: tuple[type, ...] = ()
        else:
            added = (self.package.get("callbacks.ProgressBar"), self.package.get("callbacks.ModelSummary"))
        checkpoint, default = self.package.get("callbacks.Checkpoint"), self.package.get("callbacks.ModelCheckpoint")
        for callback in trainer.callbacks:
            if isinstance(callback, checkpoint):
                unconfigured = type(callback) is default and not (
                    callback.monitor or callback.dirpath or callback.filename
                )
                if checkpoints and not (unconfigured and added):
                    yield callback
            elif not isinstance(callback, added):
                yield callback

    def _limit(self, trainer: Any, limits: Limits) -> None:
        if limits == Limits():
            return
        trainer.fit_loop.epoch_loop.max_steps = -1 if limits.max_steps is None else limits.max_steps
        trainer.fit_loop.max_epochs = -1 if limits.max_epochs is None else limits.max_epochs
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None

    @staticmethod
    def _check_arguments(traced: Traced) -> None:
        names = parameter_names(traced.cls)
        for name in traced.kwargs:
            if unknown_argument(traced.cls, name):
                raise UserError(f"{traced.name} takes no {name!r}{did_you_mean(name, names)}")
        strategy = traced.kwargs.get("strategy")
        if isinstance(strategy, str) and strategy.lower().startswith(_SHARDED_NAMES):
            raise UserError(
                f"Trainer(strategy={strategy!r}) shards the parameters; compress on one device or with strategy='ddp', "
                "and shard the compressed model"
            )


def put_around(trainer: Any, around: tuple[Any, Any], package: Package) -> None:
    """Order the callbacks: the first of `around`, the user's, the other of `around`, and checkpoints after all."""
    checkpoint = package.get("callbacks.Checkpoint")
    others = [callback for callback in trainer.callbacks if callback not in around]
    trainer.callbacks = [
        around[0],
        *(callback for callback in others if not isinstance(callback, checkpoint)),
        around[1],
        *(callback for callback in others if isinstance(callback, checkpoint)),
    ]


def _parts(trainer: Any) -> Sequence[Any]:
    """The Trainer and all that hangs on it and changes in a fit; loops are replaced."""
    connectors = [value for name, value in vars(trainer).items() if name.endswith("_connector")]
    return [trainer, trainer.state, trainer.strategy, trainer.precision_plugin, *connectors, *trainer.callbacks]


def _fresh_loops(trainer: Any) -> None:
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    trainer.fit_loop = type(fit)(trainer, min_epochs=fit.min_epochs, max_epochs=fit.max_epochs)
    trainer.fit_loop.epoch_loop = type(epoch)(trainer, min_steps=epoch.min_steps, max_steps=epoch.max_steps)
    for name in ("validate_loop", "test_loop"):
        loop = getattr(trainer, name)
        # Not in inference mode: a module may keep a tensor made in a measurement, and train with it later.
        fresh = type(loop)(trainer, loop._trainer_fn, loop._stage, verbose=False, inference_mode=False)
        setattr(trainer, name, fresh)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)
