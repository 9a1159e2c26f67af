"""What a runtime runs in integers: the schemes that settings leave open."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nnicompress.quantization.scheme import PER_TENSOR, Granularity, Scheme
from nnicompress.quantization.settings import QuantizationTensorSettings, QuantizerSettings

PROFILES = {
    # https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: on x86, U8S8 with symmetric weights
    "onnxruntime_x86": ("uint8", "int8"),
    "none": ("uint8", "int8"),
}


@dataclass(frozen=True)
class Profile:
    """Defaults for activations (affine, one scale a tensor) and weights (symmetric, one scale an output channel)."""

    activation_dtype: str
    weight_dtype: str
    full_range: bool
    """Whether symmetric weights use the lowest integer too."""

    def activation_scheme(self, asked: QuantizationTensorSettings, axis: int, dims: int) -> Scheme:
        """The scheme of an activation of `dims` dimensions whose channels lie along `axis`."""
        return Scheme(
            asked.quant_dtype or self.activation_dtype,
            symmetric=asked.quant_scheme == "symmetric",
            granularity=_granularity(asked.granularity, PER_TENSOR, channel_axis=axis, dims=dims),
        )

    def weight_scheme(self, asked: QuantizationTensorSettings, module: nn.Module, axis: int) -> Scheme:
        """The scheme of a weight whose output channels lie along `axis`."""
        # A lookup takes rows of a table, and a runtime dequantizes what it took: all rows need one scale.
        default = PER_TENSOR if isinstance(module, nn.Embedding) else Granularity(axis)
        dims = 2 if isinstance(module, nn.MultiheadAttention) else module.get_parameter("weight").dim()
        return Scheme(
            asked.quant_dtype or self.weight_dtype,
            symmetric=asked.quant_scheme != "affine",
            granularity=_granularity(asked.granularity, default, channel_axis=axis, dims=dims),
            full_range=self.full_range,
        )


def profile_of(settings: QuantizerSettings) -> Profile:
    """The profile of the settings' backend; learned scales use the whole range of integers, as their paper does."""
    activation, weight = PROFILES[settings.backend]
    return Profile(activation, weight, full_range=settings.method in ("lsq", "lsq_plus"))


def _granularity(
    asked: str | tuple[int, int | None] | None, default: Granularity, channel_axis: int, dims: int
) -> Granularity:
    """`dims`: of the tensor, from whose end negative axes count."""
    if asked is None or asked == "default":
        return default
    if asked == "tensor":
        return PER_TENSOR
    axis, block_size = (channel_axis, None) if isinstance(asked, str) else asked
    return Granularity(axis + dims if -dims <= axis < 0 else axis, block_size)
