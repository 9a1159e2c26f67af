"""Batch-norm statistics measured again."""

import torch
from torch import nn

from nnicompress.shrink.batch_norm import recalibrate_batch_norm


def test_statistics_are_the_plain_average_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)).train()
    batches = [torch.randn(8, 3, 5, 5) * 2 + 1 for _ in range(4)]
    assert recalibrate_batch_norm(model, (((batch,), {}) for batch in batches)) == 4
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.3
    assert all(module.training for module in model.modules())


def test_a_model_without_running_statistics_is_left_alone() -> None:
    assert recalibrate_batch_norm(nn.Sequential(nn.GroupNorm(1, 3)), [((torch.randn(2, 3, 4, 4),), {})]) == 0
