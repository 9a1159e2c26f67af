"""Our two callbacks in a fit: one before the user's, one after them and before checkpoints."""

from __future__ import annotations

from typing import Any, Protocol

from nnicompress.evaluators.lightning.package import Package


class Fit(Protocol):
    """What the callbacks report to."""

    def callbacks_known(self, trainer: Any) -> None:
        """The module's own callbacks are there, too."""

    def fit_started(self, trainer: Any) -> None:
        """Optimizers are built and restored, the loops not yet entered."""

    def train_started(self, trainer: Any) -> None:
        """The training data are there."""

    def between_epochs(self) -> None:
        """All business of the steps and epochs so far is over."""

    def epoch_started(self, trainer: Any) -> None:
        """The user's callbacks have begun an epoch; some swap averaged weights in."""

    def batch_done(self, trainer: Any) -> None:
        """A batch is done, the optimizer's step included."""

    def weights_will_be_read(self, trainer: Any) -> None:
        """A validation, a checkpoint or the end of the training; averaged weights are swapped in."""

    def validated(self, trainer: Any) -> None:
        """A validation inside the training is over, and its metrics are known."""

    def epoch_ended(self, trainer: Any) -> None:
        """The batches of an epoch are over, or the training ends inside it."""

    def train_ended(self, trainer: Any) -> None:
        """The user's callbacks have ended the training."""


class _Opening:
    fit: Fit

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.fit.callbacks_known(trainer)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.fit.fit_started(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.fit.train_started(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.fit.between_epochs()


class _Closing:
    fit: Fit

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.fit.epoch_started(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.fit.batch_done(trainer)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.fit.weights_will_be_read(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.fit.validated(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.fit.epoch_ended(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.fit.weights_will_be_read(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.fit.train_ended(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.fit.weights_will_be_read(trainer)


def around(fit: Fit, package: Package) -> tuple[Any, Any]:
    """The callbacks that come before and after the user's, of the package that the Trainer is of."""
    base = package.get("callbacks.Callback")
    opening, closing = (type(kind.__name__, (kind, base), {})() for kind in (_Opening, _Closing))
    opening.fit = closing.fit = fit
    return opening, closing
