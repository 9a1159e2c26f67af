"""What processes that train together exchange: means of losses and gradients, the main one's tensors, digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
import torch.distributed as collective
from torch import Tensor

from nnicompress import distributed
from nnicompress.errors import JobError

BUCKET = 64 * 2**20
"""Bytes of tensors that are exchanged in one piece, for which there is memory beside them."""


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over the processes, on its device; `value` stays as it is."""
    if distributed.world_size() == 1:
        return value
    summed = value.detach().clone()
    collective.all_reduce(summed)
    return summed / distributed.world_size()


def largest(value: Tensor) -> Tensor:
    """The largest of `value` over the processes, element by element, on its device; `value` stays as it is."""
    if distributed.world_size() == 1:
        return value
    found = value.detach().clone()
    collective.all_reduce(found, collective.ReduceOp.MAX)
    return found


def total(value: Tensor) -> Tensor:
    """The sum of `value` over the processes, element by element, on its device; `value` stays as it is."""
    if distributed.world_size() == 1:
        return value
    found = value.detach().clone()
    collective.all_reduce(found)
    return found


def means(values: Mapping[str, float]) -> dict[str, float]:
    """Each number's mean over the processes that have one of its name; of the names of this process."""
    if distributed.world_size() == 1:
        return dict(values)
    all_of_them: list[Any] = [None] * distributed.world_size()
    collective.all_gather_object(all_of_them, dict(values))
    found = {name: [other[name] for other in all_of_them if name in other] for name in values}
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes; it counts 0 where a process has none.

    A parameter that has no gradient in any process is left without.
    """
    for members in _alike(parameters):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
        there = torch.tensor([p.grad is not None for p in members], dtype=members[0].dtype, device=members[0].device)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), there])
        collective.all_reduce(flat)
        *means, there = _unflattened(flat / distributed.world_size(), [*gradients, there])
        for gradient, average in zip(gradients, means, strict=True):
            gradient.copy_(average)
        lacking = [index for index, parameter in enumerate(members) if parameter.grad is None]
        # Only asked where a gradient is lacking: a device waits here.
        for index, found in zip(lacking, there[lacking].tolist() if lacking else (), strict=True):
            if found:
                members[index].grad = gradients[index]


@torch.no_grad()
def follow_main(tensors: Iterable[Tensor]) -> None:
    """Fill `tensors` with those of the main process, in place."""
    for members in _alike(tensors):
        flat = torch.cat([member.reshape(-1) for member in members])
        collective.broadcast(flat, src=0)
        for member, found in zip(members, _unflattened(flat, members), strict=True):
            member.copy_(found)


def check_equal(what: str, tensors: Mapping[str, Tensor], way_out: str) -> None:
    """Raise a JobError in every process unless `tensors` are the same, bit by bit, in all of them.

    The message names the first tensor that differs, and ends with `way_out`.
    """
    if distributed.world_size() == 1:
        return
    own = {name: _digest(tensor) for name, tensor in tensors.items()}
    all_of_them: list[Any] = [None] * distributed.world_size()
    collective.all_gather_object(all_of_them, own)
    main: dict[str, str] = all_of_them[0]
    for number, other in enumerate(all_of_them):
        different = [name for name in {**main, **other} if main.get(name) != other.get(name)]
        if different:
            more = f" and {len(different) - 1} more" if len(different) > 1 else ""
            raise JobError(f"{what} of {different[0]}{more} differ between process 0 and process {number}: {way_out}")


def _alike(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of tensors of one type and device, of about `BUCKET` bytes; none where there is nobody to exchange with."""
    if distributed.world_size() == 1:
        return
    kinds: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for members in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for member in members:
            bucket.append(member)
            size += member.numel() * member.element_size()
            if size >= BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def _unflattened(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().to("cpu").contiguous()
    return sha256(f"{tuple(plain.shape)}".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
