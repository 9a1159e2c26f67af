"""Multiply-accumulate operations of one forward, counted by torch's own FLOP counter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of convolutions, linear layers, matrix products and attention; 1 MAC is 2 FLOPs.

    Additions, norms and activations are not counted, which is the convention of fvcore and of the pruning papers; nor
    are recurrent and bilinear layers, for which torch's counter has no formula.
    """

    total: int
    by_module: Mapping[str, int]


def count_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Macs:
    """Count for these inputs, on fake tensors: nothing is computed. `by_module` has the leaf modules' paths."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # Fused attention has no formula in the counter; as plain matrix products it has.
        with (
            FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH),
        ):  # fmt: skip
            torch.backends.mha.set_fastpath_enabled(False)
            model(*args, **dict(kwargs or {}))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training
    root = type(model).__name__
    counts = counter.get_flop_counts()
    leaves = {name for name, module in model.named_modules() if not any(True for _ in module.children())}
    by_module = {
        name: sum(flops.values()) // 2
        for path, flops in counts.items()
        if (name := path.removeprefix(root).removeprefix(".")) in leaves
    }
    return Macs(counter.get_total_flops() // 2, by_module)
