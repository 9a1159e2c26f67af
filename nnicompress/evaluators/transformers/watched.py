"""A subclass of the user's Trainer class, made for one call, that tells a watcher what happens inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.metrics import TokenLosses, token_losses

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class Watcher(Protocol):
    """What a watched Trainer asks and tells."""

    def optimizer(self, build: Callable[[], Optimizer]) -> Optimizer:
        """The optimizer; `build` is the Trainer's own way to build one."""

    def scheduler(self, steps: int, build: Callable[[], Any]) -> Any:
        """The scheduler for so many steps; `build` is the Trainer's own way to build one."""

    def loss(self, loss: Tensor, *, adds_up: bool) -> Tensor:
        """A batch's loss will be backpropagated; `adds_up` says that a step's loss is the sum, not the mean of them."""

    def before_evaluation(self) -> None:
        """The model's weights will be measured, or saved."""


class Watched(_Trainer):
    """Mixed in before the user's class; all it overrides calls the user's own."""

    watcher: Watcher
    _tokens: TokenLosses | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer once."""
        if self.optimizer is None:
            own = functools.partial(super().create_optimizer, *args, **kwargs)
            self.optimizer = self.watcher.optimizer(own)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Build the scheduler once, on the torch optimizer itself."""
        if self.lr_scheduler is None:
            own = functools.partial(super().create_scheduler, num_training_steps, *args, **kwargs)
            self.lr_scheduler = self.watcher.scheduler(num_training_steps, own)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The user's loss, with penalties behind it where it will be backpropagated."""
        labels = inputs.get("labels") if isinstance(inputs, dict) else None  # label smoothing takes them out
        try:
            found = super().compute_loss(model, inputs, *args, **kwargs)
        except ValueError as error:
            if "did not return a loss" not in str(error):
                raise
            raise UserError(
                f"{type(self.model).__name__} returned no loss for {', '.join(inputs)}; choose a model with a head for "
                "the task, give labels, or a compute_loss of your own"
            ) from error
        loss = found[0] if isinstance(found, tuple) else found
        if not isinstance(loss, Tensor):
            raise UserError(f"{type(self).__name__}.compute_loss returned {type(loss).__name__}; it must be a tensor")
        if not torch.is_grad_enabled():  # an evaluation
            if self._tokens is not None and isinstance(found, tuple) and labels is not None:
                self._tokens.add(found[1], labels)
            return found
        joined = self.watcher.loss(loss.mean(), adds_up=self._adds_up(kwargs.get("num_items_in_batch")))
        return (joined, *found[1:]) if isinstance(found, tuple) else joined

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Tell of the evaluation, and add the perplexity of a language model."""
        self.watcher.before_evaluation()
        self._tokens = token_losses(self.model)
        try:
            output = super().evaluation_loop(*args, **kwargs)
            if self._tokens is not None and output.metrics is not None:
                perplexity = self._tokens.perplexity(self._summed)
                if perplexity is not None:
                    output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_perplexity"] = perplexity
        finally:
            self._tokens = None
        return output

    def _summed(self, numbers: Tensor) -> Tensor:
        """The sums of these over all processes."""
        if self.accelerator.num_processes == 1:
            return numbers
        total: Tensor = self.accelerator.reduce(numbers.to(self.accelerator.device), reduction="sum")
        return total

    def save_model(self, *args: Any, **kwargs: Any) -> Any:
        """Tell before the weights are written."""
        self.watcher.before_evaluation()
        return super().save_model(*args, **kwargs)

    def _adds_up(self, num_items: Any) -> bool:
        """Whether the losses of an accumulation are parts of one mean; as `Trainer.training_step` decides it."""
        said = getattr(self, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        return (self.model_accepts_loss_kwargs and num_items is not None) or self.compute_loss_func is not None


def watched_class(cls: type[_Trainer]) -> type[Watched]:
    """A subclass of `cls` that is watched, under the same name."""
    return type(cls.__name__, (Watched, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
