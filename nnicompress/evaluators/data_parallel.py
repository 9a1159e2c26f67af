"""A process's part in a training that several processes do together: its share of each batch, gradients in common.

The processes see, together, the batches of one process. Each takes a share of every batch, and its loss counts by that
share, so that the mean of the gradients over the processes is the gradient of the whole batch.

The gradients are averaged once a step, when they are whole, and the model is not wrapped in DistributedDataParallel:
a training step meets the user's own module with its own methods, parameters that a forward pass leaves out are allowed,
accumulated batches are exchanged once, penalties and the parameters of compressors are averaged like all others, and no
hook is left on a model. The price is that the exchange does not overlap the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from nnicompress import distributed, exchange
from nnicompress.errors import UserError
from nnicompress.evaluators.losses import loss_of, with_loss
from nnicompress.evaluators.preserve import same_random_states, seed_everything

Step = Callable[[Any, nn.Module], Any]


class Alone:
    """One process: nothing is shared and nothing exchanged."""

    def weighted(self, training_step: Step) -> Step:
        """The training step, whose loss counts by the share of the batch that it was given."""
        return training_step

    def begin(self, loader: object) -> None:
        """A training on batches of `loader` begins."""

    def share(self, batch: Any) -> Any:
        """This process's part of a batch; the next call of the weighted step is for it."""
        return batch

    @contextmanager
    def passes(self, place: tuple[int, ...]) -> Iterator[None]:
        """Around forward and backward of the batch at `place`."""
        yield

    def meet(self) -> None:
        """After the last backward pass of a step, before clipping: gradients and buffers become common."""


class DataParallel(Alone):
    """One of several processes that train one model."""

    def __init__(self, model: nn.Module, own: Sequence[nn.Parameter] = ()) -> None:
        """`own`: parameters of compressors."""
        self._model, self._weight, self._dealt = model, 1.0, False
        self._parameters = list({id(p): p for p in (*model.parameters(), *own) if p.requires_grad}.values())

    def weighted(self, training_step: Step) -> Step:
        """Multiplied before anything is added to the loss: a penalty is no part of the batch and counts once."""

        def step(batch: Any, model: nn.Module) -> Any:
            output = training_step(batch, model)
            loss = loss_of(output)
            return output if self._weight == 1.0 else with_loss(output, loss * self._weight)

        return step

    def begin(self, loader: object) -> None:
        """All start from the main process's weights and buffers."""
        # Its sampler has dealt out the data already: the loader's batches are this process's shares.
        self._dealt = isinstance(getattr(loader, "sampler", None), DistributedSampler)
        tensors = (*self._parameters, *self._model.parameters(), *self._model.buffers())
        exchange.follow_main({id(tensor): tensor for tensor in tensors}.values())

    def share(self, batch: Any) -> Any:
        """A contiguous part; with fewer samples than processes, some get one that counts nothing."""
        self._weight = 1.0
        if self._dealt:
            return batch
        size = batch_size(batch)
        mine = part(size, distributed.rank(), distributed.world_size())
        self._weight = len(mine) * distributed.world_size() / size
        return samples(batch, size, mine or range(1))

    @contextmanager
    def passes(self, place: tuple[int, ...]) -> Iterator[None]:
        """Each process draws its own random numbers, for dropout, and the loader those that are common to all.

        They are a function of seed, place and process, so that a resumed training draws them again.
        """
        digest = sha256(f"{torch.initial_seed()}/{place}/{distributed.rank()}".encode()).digest()
        with same_random_states():
            seed_everything(int.from_bytes(digest[:4], "little"))
            yield

    def meet(self) -> None:
        """Gradients are averaged; buffers become those of the main process, as with DistributedDataParallel."""
        exchange.average_gradients(self._parameters)
        exchange.follow_main(self._model.buffers())


def part(size: int, number: int, count: int) -> range:
    """The samples of process `number` of `count`, of a batch of `size`; sizes differ by one at most."""
    return range(number * size // count, (number + 1) * size // count)


def batch_size(batch: Any) -> int:
    """The number of samples in a batch: the length of its first tensor that has one.

    Raises:
        UserError: there is none, so the batch can't be shared out.
    """
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise UserError(
        f"a batch is {type(batch).__name__} without a tensor [N, ...], so it can't be shared out among processes; let "
        "the collate function return tensors, or give the loader a torch.utils.data.DistributedSampler"
    )


def samples(value: Any, size: int, chosen: range) -> Any:
    """The `chosen` samples of a batch of `size`, through tuples, lists and mappings.

    Tensors of another length belong to the whole batch, and so does what is no tensor; a list with one plain value a
    sample (texts) is cut like a tensor.
    """
    if isinstance(value, Tensor):
        return value[chosen.start : chosen.stop] if value.dim() and len(value) == size else value
    if isinstance(value, Mapping):
        return {name: samples(item, size, chosen) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        if len(value) == size and not any(isinstance(item, (Tensor, Mapping, tuple, list)) for item in value):
            return value[chosen.start : chosen.stop]
        items = [samples(item, size, chosen) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        yield value
        return
    for item in value:
        yield from _leaves(item)
