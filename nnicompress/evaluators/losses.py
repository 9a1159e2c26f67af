"""The loss of a training step: found in what the step returned, and read without making the device wait."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from nnicompress.errors import UserError


def loss_of(output: Any) -> Tensor:
    """The loss in what a `training_step` returned: a loss, a tuple that begins with it, or a mapping with key `loss`.

    Raises:
        UserError: it is none of these, or the loss is not one number.
    """
    if isinstance(output, Tensor) and output.numel() == 1:
        return output
    loss = output
    if isinstance(output, Mapping):
        if "loss" not in output:
            raise UserError(
                f"training_step returned a mapping without the key 'loss'; it has {sorted(map(str, output))}"
            )
        loss = output["loss"]
    elif isinstance(output, tuple):
        loss = output[0] if output else None
    if not isinstance(loss, Tensor):
        raise UserError(
            f"training_step returned {type(output).__name__}, in which the loss is {type(loss).__name__}; it must "
            "return a loss tensor, a tuple whose first element is the loss, or a mapping with key 'loss'"
        )
    if loss.numel() != 1:
        raise UserError(
            f"training_step returned a loss of shape {tuple(loss.shape)}; it must be one number (take the mean)"
        )
    return loss


def with_loss(output: Any, loss: Tensor) -> Any:
    """`output` of a `training_step` with its loss replaced; the original is left as it is."""
    if isinstance(output, Tensor):
        return loss
    if isinstance(output, tuple):
        rest = output[1:]
        return type(output)(loss, *rest) if hasattr(output, "_fields") else (loss, *rest)
    if isinstance(output, MutableMapping):
        changed = copy.copy(output)
        changed["loss"] = loss
        return changed
    return {**output, "loss": loss}


class LossReader:
    """Turns losses into floats, in order, as soon as they are there without waiting for the device.

    On the CPU that is at once. On CUDA each loss is copied in the background, and comes out some steps later or at
    `flush`. Each loss carries whatever belongs to it.
    """

    def __init__(self) -> None:
        self._arrived: list[tuple[float, Any]] = []
        self._waiting: deque[tuple[Tensor, torch.cuda.Event, Any]] = deque()

    def put(self, loss: Tensor, payload: Any = None) -> None:
        """Take a loss (any shape with one element) and what belongs to it."""
        if not loss.is_cuda:
            self._arrived.append((loss.item(), payload))
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied = loss.detach().to("cpu", non_blocking=True)
        event.record()
        self._waiting.append((copied, event, payload))

    def ready(self) -> list[tuple[float, Any]]:
        """The losses that have arrived since the last call."""
        while self._waiting and self._waiting[0][1].query():  # type: ignore[no-untyped-call]
            loss, _, payload = self._waiting.popleft()
            self._arrived.append((loss.item(), payload))
        arrived, self._arrived = self._arrived, []
        return arrived

    def flush(self) -> list[tuple[float, Any]]:
        """All losses that are left, waiting for the last."""
        if self._waiting:
            self._waiting[-1][1].synchronize()
        return self.ready()
