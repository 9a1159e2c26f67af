"""Outputs of an exported file beside the eager model's, on real inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput


def on_device(inputs: ModelInput, device: torch.device | str) -> ModelInput:
    """The same inputs with every tensor on `device`."""
    moved: ModelInput = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    return moved


def cpu_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU, without gradients: what gets exported."""
    duplicate = copy.deepcopy(model).cpu().eval()
    for parameter in duplicate.parameters():
        parameter.grad = None
    return duplicate


def compare_outputs(
    exported: nn.Module, eager: nn.Module, batches: Sequence[ModelInput], *, tolerance: float, what: str
) -> float:
    """The largest difference of any output element, relative to the largest magnitude of that output.

    Raises:
        JobError: outputs differ in number or shape, or by more than `tolerance`.
    """
    worst = 0.0
    for args, kwargs in batches:
        with torch.no_grad():
            want = [leaf for leaf in tree_leaves(eager(*args, **kwargs)) if isinstance(leaf, Tensor)]
            got = [leaf for leaf in tree_leaves(exported(*args, **kwargs)) if isinstance(leaf, Tensor)]
        if [t.shape for t in want] != [t.shape for t in got]:
            raise JobError(
                f"{what} returns shapes {[tuple(t.shape) for t in got]}, the model {[tuple(t.shape) for t in want]}"
            )
        for a, b in zip(got, want, strict=True):
            if not b.numel():
                continue
            difference = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-12)
            # A NaN compares False with everything, so it must be caught as the failure that it is.
            if not difference <= tolerance:
                raise JobError(f"{what} differs from the model by {float(difference):.2e}, more than {tolerance:.0e}")
            worst = max(worst, float(difference))
    return worst
