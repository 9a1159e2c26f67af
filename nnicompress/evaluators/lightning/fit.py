"""One fit of the user's Trainer on the bound model, watched through a session and two callbacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.callbacks import around
from nnicompress.evaluators.lightning.data import Loaders
from nnicompress.evaluators.lightning.optimizers import OptimizerSetup
from nnicompress.evaluators.lightning.package import Package, interrupts_pass
from nnicompress.evaluators.lightning.put_back import no_engine_left, no_trainer_left, replaced, same_devices
from nnicompress.evaluators.lightning.replay import DataPosition, replayed
from nnicompress.evaluators.lightning.trainers import TrainerSource, put_around
from nnicompress.evaluators.losses import loss_of, with_loss
from nnicompress.evaluators.rebuild import OwnGroup, Rebuilder
from nnicompress.evaluators.session import Hooks, LoopStopped, Session, Step

_WITHOUT_LOSS = (
    "training_step made an optimizer step without a loss that was seen: under manual optimization call "
    "self.manual_backward(loss), not loss.backward(): a compressor adds to the loss"
)


@dataclass(frozen=True)
class Given:
    """What the user gave the evaluator."""

    source: TrainerSource
    loaders: Loaders
    rebuilder: Rebuilder
    interval: str
    metric: str

    @property
    def package(self) -> Package:
        """The Lightning package that all is of."""
        return self.source.package


class WatchedFit:
    """A fit of `module`, the LightningModule that is or wraps `model`; this base of trainings runs dry ones, too.

    The module's `configure_optimizers`, `training_step`, `manual_backward` and, where it or a datamodule has the data,
    `train_dataloader` are wrapped on the instance meanwhile: the optimizers' own hooks tell of steps, and the wrapped
    methods hand over the losses.
    """

    dry = True

    def __init__(
        self, given: Given, module: Any, model: nn.Module, hooks: Hooks, own: Sequence[OwnGroup], first_epoch: int
    ) -> None:
        self.given, self.module, self.model, self.hooks, self.own = given, module, model, hooks, own
        self.trainer: Any = None
        self.session: Session | None = None
        self.position = DataPosition(first_epoch, self._epoch, self.between_batches, None)
        self.around = around(self, given.package)
        self._watching = ExitStack()
        self._stop_at: int | None = None
        self._steps_before = 0

    def run_dry(self, num_steps: int) -> int:
        """Make so many steps on optimizers that move nothing; returns how many there were."""
        self._stop_at = num_steps
        with self.given.source.dry(num_steps, self.around) as trainer:
            try:
                self._fit(trainer)
            except LoopStopped:
                pass  # the steps asked for are done
            finally:
                self.position.put_back()
        return 0 if self.session is None else self.session.steps

    def _fit(self, trainer: Any, **more: Any) -> None:
        given, module = self.given, self.module
        given.loaders.check("train", module)
        lightning_module = given.package.get("LightningModule")
        self.trainer = trainer
        with ExitStack() as stack:
            stack.enter_context(self._watching)
            stack.enter_context(same_devices(parameter for named, _ in self.own for _, parameter in named))
            stack.enter_context(no_engine_left(module, lightning_module, everything=self.dry))
            stack.enter_context(interrupts_pass())
            stack.enter_context(replaced(module, **self._wrapped(module)))
            arguments = self._data(stack)
            try:
                trainer.fit(module, **arguments, **more)
            except given.package.get("utilities.exceptions.MisconfigurationException") as error:
                raise UserError(f"Trainer.fit: {error}") from error
            finally:
                self.trainer = None

    def _data(self, stack: ExitStack) -> dict[str, Any]:
        """What `Trainer.fit` is given; the train loaders are watched, wherever they come from."""
        loaders, combined = self.given.loaders, self.given.package.get("utilities.CombinedLoader")
        owner = loaders.owner(self.module)
        if owner is None:
            arguments = loaders.arguments("train", *([] if self.dry else ["validation"]))
            arguments["train_dataloaders"] = replayed(arguments["train_dataloaders"], self.position, combined)
            return arguments
        original = getattr(owner, loaders.hook("train"))

        @functools.wraps(original)
        def train_dataloader() -> Any:
            return replayed(original(), self.position, combined)

        if loaders.datamodule is not None:
            stack.enter_context(no_trainer_left(loaders.datamodule))
        stack.enter_context(replaced(owner, **{loaders.hook("train"): train_dataloader}))
        return loaders.arguments()

    def _wrapped(self, module: Any) -> dict[str, Callable[..., Any]]:
        setup = OptimizerSetup(
            self.given.rebuilder,
            self.given.interval,
            self.given.metric,
            self.own,
            dry=self.dry,
            on_built=self._optimizers_built,
        )
        configure, step, backward = module.configure_optimizers, module.training_step, module.manual_backward

        # Not functools.wraps, through which Lightning would see that a module has none of its own.
        def configure_optimizers() -> Any:
            for named, _ in self.own:
                for _, parameter in named:  # those that are not in the module have not moved with it
                    parameter.data = parameter.data.to(module.device)
            return setup(module, self.model, configure)

        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            # Without a backward pass, SWA has batch-norm collect statistics.
            if output is None or not module.automatic_optimization or self.trainer.fit_loop._skip_backward:
                return output
            assert self.session is not None
            loss = loss_of(output)
            joined = self.session.take(loss)
            return output if joined is loss else with_loss(output, joined)

        @functools.wraps(backward)
        def manual_backward(loss: Any, *args: Any, **kwargs: Any) -> None:
            assert self.session is not None
            backward(self.session.take(loss), *args, **kwargs)

        return {
            "configure_optimizers": configure_optimizers,
            "training_step": training_step,
            "manual_backward": manual_backward,
        }

    def _optimizers_built(self, optimizers: list[Optimizer]) -> None:
        self.session = Session(
            self.model,
            optimizers,
            None,
            self.hooks,
            on_step=self._step_done,
            steps=self._steps_before,
            stop_at=self._stop_at,
            closures=True,
            without_loss=_WITHOUT_LOSS,
        )
        self._watching.enter_context(self.session.attached())

    def _epoch(self) -> int:
        return int(self.trainer.fit_loop.epoch_progress.current.processed)

    # --------------------------------------------------------------- what the session, the data and the callbacks tell

    def _step_done(self, step: Step) -> None:
        """A step is over, and its loss is there."""

    def between_batches(self) -> None:
        """The next batch is about to be fetched."""

    def callbacks_known(self, trainer: Any) -> None:
        """The module's own callbacks are there, too: in a training they stay, in between ours."""
        if self.dry:
            trainer.callbacks = list(self.around)
        else:
            put_around(trainer, self.around, self.given.package)

    def fit_started(self, trainer: Any) -> None:
        """Under manual optimization Lightning counts all optimizers' steps; the session ends a dry run instead."""
        if not self.module.automatic_optimization:
            trainer.fit_loop.epoch_loop.max_steps = -1

    def train_started(self, trainer: Any) -> None:
        """The training data are there."""

    def between_epochs(self) -> None:
        """All business of the steps and epochs so far is over."""

    def epoch_started(self, trainer: Any) -> None:
        """The user's callbacks have begun an epoch."""

    def batch_done(self, trainer: Any) -> None:
        """A batch is done."""

    def weights_will_be_read(self, trainer: Any) -> None:
        """A validation, a checkpoint or the end of the training."""

    def validated(self, trainer: Any) -> None:
        """A validation inside the training is over."""

    def epoch_ended(self, trainer: Any) -> None:
        """The batches of an epoch are over, or the training ends inside it."""

    def train_ended(self, trainer: Any) -> None:
        """The user's callbacks have ended the training."""
