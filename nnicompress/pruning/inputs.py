"""What a layer's weights are multiplied with: a statistic of each input channel, in the shape of the weight.

Nothing is kept of a batch but one sum a channel, so the memory is that of one layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nnicompress import exchange
from nnicompress.pruning.importance import InputStatistic


def gather(
    model: nn.Module, statistic: InputStatistic, parameters: Iterable[str], show: Callable[[], None]
) -> dict[str, Tensor]:
    """The statistic of what each of `parameters` is multiplied with, each of the parameter's shape, on the CPU.

    `show` shows the batches to the layers. Weights of convolutions and linear layers have a statistic; others are left
    out. A weight that several modules share, or that one module uses several times, gets that of all of these inputs.
    """
    named = dict(model.named_parameters())
    wanted = {id(named[name]): name for name in parameters if name in named}
    owners: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        name = wanted.get(id(module._parameters.get("weight")))
        if name is not None and _channel_dim(module) is not None:
            owners.setdefault(name, []).append(module)
    sums = {name: _Sum(statistic) for name in owners}
    handles = [
        module.register_forward_pre_hook(sums[name], with_kwargs=True)
        for name, modules in owners.items()
        for module in modules
    ]
    try:
        show()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: spread(sums[name].mean(), modules[0]) for name, modules in owners.items() if sums[name].total is not None
    }


class _Sum:
    """A forward pre-hook that adds up one layer's inputs; evaluations in between do not count.

    A backward pass that runs the forward again (gradient checkpointing) may be the only one with gradients; where it is
    the second, each input counts twice, and the mean is the same.
    """

    def __init__(self, statistic: InputStatistic) -> None:
        self.statistic = statistic
        self.total: Tensor | None = None
        self.count = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        with torch.no_grad():
            inputs = args[0] if args else kwargs["input"]
            values = self.statistic.of_values(inputs if inputs.dtype == torch.float64 else inputs.float())
            dim = _channel_dim(module)
            assert dim is not None
            others = [other for other in range(values.dim()) if other != dim % values.dim()]
            total = values.sum(dim=others, dtype=torch.float64) if others else values.double()
            self.total = total if self.total is None else self.total + total
            self.count += values.numel() // len(total)

    def mean(self) -> Tensor:
        """Over all inputs of all processes, shape [channels], float64."""
        assert self.total is not None
        # The processes' shares of a batch may differ by one: sums and counts are averaged apart.
        total, count = exchange.mean(self.total), exchange.mean(self.total.new_tensor(self.count))
        return self.statistic.of_mean(total / count).cpu()


def spread(channels: Tensor, module: nn.Module) -> Tensor:
    """Each weight's own input channel: `channels` [inputs] in the shape of the module's weight."""
    shape = module.get_parameter("weight").shape
    if isinstance(module, _ConvTransposeNd):
        return channels.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    if isinstance(module, _ConvNd):
        groups = channels.view(module.groups, -1)
        rows = groups.repeat_interleave(module.out_channels // module.groups, dim=0)
        return rows.view(*rows.shape, *[1] * (len(shape) - 2)).expand(shape)
    return (channels if isinstance(module, nn.Linear) else channels[:, None]).expand(shape)


def _channel_dim(module: nn.Module) -> int | None:
    """The dimension of the module's input that its weight sums over; None where it is no such layer."""
    if isinstance(module, _ConvNd):
        return -len(module.kernel_size) - 1
    # Transformers' Conv1D is a linear layer whose weight lies [in, out].
    return -1 if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" else None
