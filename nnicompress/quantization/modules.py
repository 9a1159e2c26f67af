"""Quantized modules: subclasses that a module's class is swapped to, and back.

Parameters stay the same objects under the same names, so optimizers and checkpoints go on; what is added lies in one
child, `quantizers`. Only exact types are swapped: a user's subclass has a forward of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from nnicompress.errors import UserError
from nnicompress.quantization.attention import softmax_scores
from nnicompress.quantization.parameters import QUANTIZERS, quantized

ModuleType = type[nn.Module]


class QConv1d(nn.Conv1d):
    """nn.Conv1d with quantized parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, L]."""
        found: Tensor = self._conv_forward(input, quantized(self, "weight"), quantized(self, "bias"))
        return found


class QConv2d(nn.Conv2d):
    """nn.Conv2d with quantized parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W]."""
        found: Tensor = self._conv_forward(input, quantized(self, "weight"), quantized(self, "bias"))
        return found


class QConv3d(nn.Conv3d):
    """nn.Conv3d with quantized parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W]."""
        found: Tensor = self._conv_forward(input, quantized(self, "weight"), quantized(self, "bias"))
        return found


def _transposed(module: Any, function: Any, dims: int, input: Tensor, output_size: Any) -> Tensor:
    padding = module._output_padding(
        input, output_size, module.stride, module.padding, module.kernel_size, dims, module.dilation
    )
    found: Tensor = function(
        input, quantized(module, "weight"), quantized(module, "bias"),
        module.stride, module.padding, padding, module.groups, module.dilation,
    )  # fmt: skip
    return found


class QConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d with quantized parameters."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """[N, C, L]."""
        return _transposed(self, functional.conv_transpose1d, 1, input, output_size)


class QConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with quantized parameters."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """[N, C, H, W]."""
        return _transposed(self, functional.conv_transpose2d, 2, input, output_size)


class QConvTranspose3d(nn.ConvTranspose3d):
    """nn.ConvTranspose3d with quantized parameters."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """[N, C, D, H, W]."""
        return _transposed(self, functional.conv_transpose3d, 3, input, output_size)


class QLinear(nn.Linear):
    """nn.Linear with quantized parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features]."""
        return functional.linear(input, quantized(self, "weight"), quantized(self, "bias"))


class QEmbedding(nn.Embedding):
    """nn.Embedding with a quantized table."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape."""
        return functional.embedding(
            input, quantized(self, "weight"), self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip


class QMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with quantized parameters and, inside, quantized queries, keys, values, probabilities.

    Its projections and products are spelled out: torch's own function is one call, into which no quantizer reaches.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See torch's: shapes, masks and result are the same."""
        return multi_head_attention_forward(
            query, key, value, self, key_padding_mask, need_weights, attn_mask, average_attn_weights
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The forward itself."""
        quantizers: Any = self._modules[QUANTIZERS]
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weight, bias = quantized(self, "in_proj_weight"), quantized(self, "in_proj_bias")
        biases = (None, None, None) if bias is None else bias.chunk(3)
        projected = [
            functional.linear(x, w, b).view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)
            for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)
        ]
        q, k, v = (
            quantizers[name](x) if name in quantizers else x
            for name, x in zip(("query", "key", "value"), projected, strict=True)
        )
        mask = _joined_mask(attn_mask, key_padding_mask, q, k, batched)
        weights = softmax_scores(q * self.head_dim**-0.5, k, mask)
        dropped = functional.dropout(weights, self.dropout, self.training)
        dropped = quantizers["probabilities"](dropped) if "probabilities" in quantizers else dropped
        context = (dropped @ v).transpose(1, 2).flatten(2)
        context = quantizers["context"](context) if "context" in quantizers else context
        output_weight = self.out_proj.weight
        if "out_proj_weight" in quantizers:
            output_weight = quantizers["out_proj_weight"](output_weight)
        output = functional.linear(context, output_weight, self.out_proj.bias)
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        shown = dropped.mean(dim=1) if average_attn_weights else dropped
        return output, shown if batched else shown.squeeze(0)


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, module: QMultiheadAttention, *options: Any
) -> tuple[Tensor, Tensor | None]:
    """`module.attend` as one torch call, which is what torch's own attention is to the frame around it."""
    if has_torch_function((query, key, value)):
        found: tuple[Tensor, Tensor | None] = handle_torch_function(
            multi_head_attention_forward, (query, key, value), query, key, value, module, *options
        )
        return found
    return module.attend(query, key, value, *options)


def _joined_mask(
    attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, key: Tensor, batched: bool
) -> Tensor | None:
    """Masks as torch takes them (True: left out) as one that is added to scores [N, heads, queries, keys]."""
    joined: Tensor | None = None
    if attn_mask is not None:
        joined = _added(attn_mask, query.dtype)
        if joined.dim() == 3:
            joined = joined.view(query.shape[0], -1, *joined.shape[1:])
    if padding is not None:
        padding = padding if batched else padding.unsqueeze(0)
        left_out = _added(padding, query.dtype).view(key.shape[0], 1, 1, -1)
        joined = left_out if joined is None else joined + left_out
    return joined


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


SWAPS: dict[ModuleType, ModuleType] = {
    nn.Conv1d: QConv1d,
    nn.Conv2d: QConv2d,
    nn.Conv3d: QConv3d,
    nn.ConvTranspose1d: QConvTranspose1d,
    nn.ConvTranspose2d: QConvTranspose2d,
    nn.ConvTranspose3d: QConvTranspose3d,
    nn.Linear: QLinear,
    nn.Embedding: QEmbedding,
    nn.MultiheadAttention: QMultiheadAttention,
}
"""Exact type -> its quantized class."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def add_transformers() -> None:
    """Know transformers' Conv1D too, where that package is in use: its weight is [in, out]."""
    package = sys.modules.get("transformers.pytorch_utils")
    if package is not None and package.Conv1D not in SWAPS:
        from nnicompress.quantization.transformers_modules import QConv1D

        SWAPS[package.Conv1D] = QConv1D


def channel_axis(module: nn.Module) -> int:
    """The dimension of output channels of the module's weight."""
    if isinstance(module, TRANSPOSED):
        return 1
    return 1 if type(module).__name__ in ("Conv1D", "QConv1D") else 0


class Quantizers(nn.ModuleDict):
    """The child that quantization adds to a module."""

    def __init__(self, owner: str) -> None:
        """`owner`: the module's name."""
        super().__init__()
        self._owner = owner

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """No forward calls it, but for one that goes through all children of its module.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"the forward of {self._owner or 'the model'} runs all its children, of which quantization adds one; keep "
            "those that it runs in a ModuleList, or leave it out with exclude_op_names"
        )


def swap(module: nn.Module, name: str) -> Quantizers:
    """Swap the module's class where it has a quantized one, and give it `quantizers`; returns those.

    Raises:
        UserError: the module has an attribute of that name.
    """
    own = getattr(module, QUANTIZERS, None)
    if own is not None:
        raise UserError(f"module {name!r} has an attribute {QUANTIZERS!r} already, the name that quantization uses")
    if type(module) in SWAPS:
        module.__class__ = SWAPS[type(module)]
    quantizers = Quantizers(name)
    module.add_module(QUANTIZERS, quantizers)
    quantizers.train(module.training)
    return quantizers


def swap_back(module: nn.Module) -> None:
    """Undo `swap`."""
    module._modules.pop(QUANTIZERS, None)
    for plain, other in SWAPS.items():
        if type(module) is other:
            module.__class__ = plain
