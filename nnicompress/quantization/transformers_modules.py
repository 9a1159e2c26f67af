"""The quantized class of transformers' Conv1D, which GPT-2 is made of; imported where transformers is in use."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from nnicompress.quantization.parameters import quantized


class QConv1D(Conv1D):
    """Conv1D with quantized parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features]."""
        flat = torch.addmm(quantized(self, "bias"), x.reshape(-1, x.shape[-1]), quantized(self, "weight"))
        return flat.view(*x.shape[:-1], self.nf)
