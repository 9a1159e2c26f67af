"""Adds a penalty's gradient exactly once an optimizer step, whatever the user's loop does with the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Penalty
from nnicompress.evaluators.registry import Registry


class PenaltyGradient:
    """Joins the penalties to the graph of a step's loss, so that `loss.backward()` adds their gradient.

    The loss keeps its value: only the backward pass knows of the penalty. That puts it before clipping, after
    `zero_grad` and into whatever synchronises gradients, with nothing asked of the loop. How often and how strongly:

    - it joins the first loss that is backpropagated after each optimizer step, with weight one however that loss is
      scaled down: with accumulation over N batches, `(loss / N).backward()` and `loss.backward()` both get it once;
    - where the loss is scaled up by s (`GradScaler`, which divides the gradients by s again before the step), it joins
      every loss of the step with that loss's own scale: once again in sum, for losses divided by N.

    Limits: a loop that multiplies its loss by a constant above one multiplies the penalty, too; one that steps
    several optimizers in turn on losses of their own (a GAN) is refused, because it throws away gradients.
    """

    def __init__(self, penalties: Registry[Penalty], num_optimizers: int) -> None:
        self._penalties, self._num_optimizers = penalties, num_optimizers
        self._owed = True
        self._scale: Tensor | None = None
        self._stepped: set[int] = set()

    def join(self, loss: Tensor, model: nn.Module) -> Tensor:
        """`loss`, with the penalties of `model` behind it where this step still owes them."""
        if self._stepped and len(self._stepped) != self._num_optimizers:
            raise UserError(
                "training_func steps its optimizers in turn, on losses of their own; a penalty on the loss would be "
                "lost in between, so this compressor needs optimizers that step together"
            )
        self._stepped.clear()
        if not loss.requires_grad or not (self._owed or self._is_scaled_up()):
            return loss
        penalty = sum((term(model).sum() for term in self._penalties), start=torch.zeros((), device=loss.device))
        if not isinstance(penalty, Tensor) or not penalty.requires_grad:
            return loss
        joined: Tensor = _Join.apply(loss, penalty, self)  # type: ignore[no-untyped-call]
        return joined

    def share(self, gradient: Tensor) -> Tensor | None:
        """The penalty's weight, where the loss it joined is backpropagated with `gradient`."""
        if self._owed:
            self._owed, self._scale = False, gradient
            return gradient.clamp(min=1.0)
        return gradient if self._is_scaled_up() else None

    def optimizer_stepped(self, index: int) -> None:
        """The optimizer of this index has made a step; after the first one's, the penalty is owed again."""
        self._stepped.add(index)
        if index == 0:
            self._owed, self._scale = True, None

    def _is_scaled_up(self) -> bool:
        # Only asked for the second and later batches of an accumulation: a device waits here, once each.
        return self._scale is not None and bool((self._scale > 1.0).item())


class _Join(torch.autograd.Function):
    """The identity on the loss; backward, the penalty gets the weight that `PenaltyGradient.share` says."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, penalty: Tensor, owner: PenaltyGradient) -> Tensor:
        ctx.owner, ctx.penalty_shape, ctx.penalty_dtype = owner, penalty.shape, penalty.dtype
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        share = ctx.owner.share(gradients[0].detach())
        if share is not None:
            share = share.reshape(ctx.penalty_shape).to(ctx.penalty_dtype)
        return gradients[0], share, None
