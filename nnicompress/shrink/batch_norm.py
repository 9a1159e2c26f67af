"""Measure batch-norm statistics again after channels are gone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nnicompress.evaluators.contract import ModelInput


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[ModelInput]) -> int:
    """Replace running statistics by the plain average over `batches`; returns how many batches were used.

    Weights, momentum and the training mode of every module are left as they were; a model without running statistics
    is left alone (0 is returned).
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    count = 0
    try:
        model.eval()  # dropout stays off
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # documented by torch: the cumulative, plain average
        with torch.no_grad():
            for args, kwargs in batches:
                model(*args, **kwargs)
                count += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    assert count, "no batch to measure the statistics on"
    return count
