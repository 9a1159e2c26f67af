"""Small, real versions of architectures, each with the trait that makes a channel group hard to find.

`ZOO[name]()` gives `(model, (args, kwargs))`: the model in eval mode with seeded weights, and inputs of batch size 7
(`coincidence`: 8) whose dimension 0 is the batch everywhere. `random_inputs` makes other batches of the same shapes;
`perturb_norms` makes every channel behave differently, so that a swapped index changes the outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.models.mlp import mlp
from nnicompress.models.mobilenet_v2 import MobileNetV2
from nnicompress.models.resnet import BasicBlock, Bottleneck, ResNet
from nnicompress.models.vgg import VGG
from tests.models.architectures import ConvNeXt, DenseNet, ShuffleNetV2, UNet
from tests.models.traits import (
    Coincidence,
    DictOutput,
    KeywordArguments,
    LayerScale,
    PaddedSliced,
    PadShortcut,
    SharedModule,
    SqueezeExcite,
    TiedWeights,
    TwoInputs,
)

ModelInput = tuple[tuple[Any, ...], dict[str, Any]]
Builder = Callable[[], tuple[nn.Module, ModelInput]]
ZOO: dict[str, Builder] = {}


def entry(function: Callable[[], tuple[nn.Module, Any]]) -> Builder:
    """Put a builder in the zoo under its name: seeded, in eval mode, inputs as `(args, kwargs)`."""

    @functools.wraps(function)
    def build() -> tuple[nn.Module, ModelInput]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = function()
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if not (len(inputs) == 2 and isinstance(inputs[1], dict)):
            inputs = (inputs, {})
        return model.eval(), inputs

    ZOO[function.__name__] = build
    return build


def random_inputs(example: ModelInput, batch_size: int, seed: int) -> ModelInput:
    """Inputs of the example's shapes and `batch_size`: normal noise for floats, values of the example for integers."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = (batch_size, *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=value.dtype)
        picks = torch.randint(value.numel(), shape, generator=generator)
        return value.flatten()[picks]

    args, kwargs = example
    return tuple(fresh(value) for value in args), {name: fresh(value) for name, value in kwargs.items()}


@torch.no_grad()
def perturb_norms(model: nn.Module, seed: int = 0) -> None:
    """Randomise what a fresh model has alike in every channel, and keep the channels alive.

    Norms' weights, biases and statistics, all other biases and plain scales (`[C]`, `[C, 1, 1]`) become random, biases
    positive, because a channel that a ReLU silences on every input could be swapped unnoticed. Weights of convolutions
    and linear layers are drawn anew, each filter with mean zero: the inputs' positive mean, the same
    for all images, would drown what differs.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name == "running_var":
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif name == "running_mean":
                tensor.normal_(0.0, 0.3, generator=generator)
            elif name == "bias":
                tensor.uniform_(0.4, 1.4, generator=generator)
            elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                filters = tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator).flatten(1)
                filters -= filters.mean(dim=1, keepdim=True)
            elif isinstance(tensor, nn.Parameter) and tensor.numel() == max(tensor.shape):
                # A norm's weight or a plain scale: away from zero, on both sides of 1.
                tensor.uniform_(0.5, 1.5, generator=generator)


@entry
def vgg() -> tuple[nn.Module, Any]:
    """Biases in the convolutions, and a linear layer behind a flattened 2x2 map."""
    model = VGG(((8, 8), (12,), (16, 16)), 10, image_size=16, batch_norm=False, hidden=20)
    return model, torch.randn(7, 3, 16, 16)


@entry
def vgg_bn() -> tuple[nn.Module, Any]:
    """The same with batch norm."""
    model = VGG(((8, 8), (12,), (16, 16)), 10, image_size=16, batch_norm=True, hidden=20)
    return model, torch.randn(7, 3, 16, 16)


@entry
def resnet_basic() -> tuple[nn.Module, Any]:
    """Identity and projection shortcuts."""
    model = ResNet(BasicBlock, (2, 2, 2), 10, width=8, small_images=True)
    return model, torch.randn(7, 3, 16, 16)


@entry
def resnet_bottleneck() -> tuple[nn.Module, Any]:
    """Bottleneck blocks behind the 7x7 stem with max-pooling."""
    model = ResNet(Bottleneck, (2, 2), 10, width=8)
    return model, torch.randn(7, 3, 32, 32)


@entry
def resnext() -> tuple[nn.Module, Any]:
    """Grouped convolutions of cardinality 4: a group's inputs and outputs lose channels evenly."""
    model = ResNet(Bottleneck, (2, 2), 10, width=8, small_images=True, groups=4, group_width=32)
    return model, torch.randn(7, 3, 16, 16)


@entry
def mobilenet_v2() -> tuple[nn.Module, Any]:
    """Depthwise convolutions, linear bottlenecks with shortcuts, ReLU6."""
    stages = ((1, 8, 1, 1), (6, 8, 2, 1), (6, 16, 2, 2))
    return MobileNetV2(stages, 10, small_images=True, stem=8, head=32), torch.randn(7, 3, 16, 16)


@entry
def densenet() -> tuple[nn.Module, Any]:
    """Each layer reads a growing cat, through a norm that spans all of it; transitions with average pooling."""
    return DenseNet((3, 3), 6, 12, 10, small_images=True), torch.randn(7, 3, 16, 16)


@entry
def shufflenet_v2() -> tuple[nn.Module, Any]:
    """Channel split, cat and shuffle."""
    return ShuffleNetV2((3, 2), (12, 24, 40, 32), 10, stem_stride=1), torch.randn(7, 3, 32, 32)


@entry
def unet() -> tuple[nn.Module, Any]:
    """Skip connections by cat, transposed convolutions."""
    return UNet((8, 16, 24), 3), torch.randn(7, 3, 16, 16)


@entry
def unet_nearest() -> tuple[nn.Module, Any]:
    """Upsampling by nearest-neighbour interpolation."""
    return UNet((8, 16, 24), 3, up="nearest"), torch.randn(7, 3, 16, 16)


@entry
def unet_bilinear() -> tuple[nn.Module, Any]:
    """Upsampling by bilinear interpolation."""
    return UNet((8, 16, 24), 3, up="bilinear"), torch.randn(7, 3, 16, 16)


@entry
def unet_group_norm() -> tuple[nn.Module, Any]:
    """Group norm: a removed channel changes its group's statistics."""
    return UNet((8, 16, 24), 3, norm="group", up="nearest"), torch.randn(7, 3, 16, 16)


@entry
def convnext() -> tuple[nn.Module, Any]:
    """Permuted layouts, LayerNorm over the residual width, linear layers on `[N, H, W, C]`, layer scale."""
    return ConvNeXt((1, 1), (8, 16), 10), torch.randn(7, 3, 32, 32)


@entry
def multilayer_perceptron() -> tuple[nn.Module, Any]:
    """Linear layers with biases on a flattened image."""
    return mlp(10, 1, 6, hidden=(24, 16)), torch.randn(7, 1, 6, 6)


@entry
def mlp_batch_norm() -> tuple[nn.Module, Any]:
    """Linear layers with one-dimensional batch norm."""
    return mlp(10, 1, 6, hidden=(24, 16), batch_norm=True), torch.randn(7, 1, 6, 6)


@entry
def two_inputs_cat() -> tuple[nn.Module, Any]:
    """Two branches, concatenated."""
    return TwoInputs("cat"), (torch.randn(7, 3, 8, 8), torch.randn(7, 5))


@entry
def two_inputs_add() -> tuple[nn.Module, Any]:
    """Two branches, added: their widths are one."""
    return TwoInputs("add"), (torch.randn(7, 3, 8, 8), torch.randn(7, 5))


@entry
def dict_output() -> tuple[nn.Module, Any]:
    """Two heads, returned as a dict."""
    return DictOutput(), torch.randn(7, 3, 8, 8)


@entry
def keyword_arguments() -> tuple[nn.Module, Any]:
    """Feature-wise multiplication by a second, keyword input."""
    return KeywordArguments(), ((torch.randn(7, 3, 8, 8),), {"condition": torch.randn(7, 6), "gain": 0.5})


@entry
def squeeze_excite() -> tuple[nn.Module, Any]:
    """Broadcast multiplication by a gate of shape `[N, C, 1, 1]`."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        SqueezeExcite(16, 6),
        SqueezeExcite(16, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    return model, torch.randn(7, 3, 8, 8)


@entry
def coincidence() -> tuple[nn.Module, Any]:
    """Equal integers that mean different things: only `hidden` follows the first convolution's width."""
    return Coincidence(), torch.randn(8, 3, 8, 8)


@entry
def conv1d() -> tuple[nn.Module, Any]:
    """One-dimensional convolutions, strided and dilated."""
    model = nn.Sequential(
        nn.Conv1d(2, 12, 5, padding=2, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Conv1d(12, 16, 3, stride=2, padding=2, dilation=2),
        nn.LeakyReLU(0.1),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 16, 3, padding=1, groups=16),
        nn.Flatten(),
        nn.Linear(16 * 8, 5),
    )
    return model, torch.randn(7, 2, 32)


@entry
def conv3d() -> tuple[nn.Module, Any]:
    """Three-dimensional convolutions."""
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    return model, torch.randn(7, 1, 4, 6, 8)


@entry
def padded_sliced() -> tuple[nn.Module, Any]:
    """Pad, slice and split along channels."""
    return PaddedSliced(), torch.randn(7, 3, 8, 8)


@entry
def pad_shortcut() -> tuple[nn.Module, Any]:
    """Channels padded with zeros before an addition."""
    return PadShortcut(), torch.randn(7, 3, 8, 8)


@entry
def layer_scale() -> tuple[nn.Module, Any]:
    """Scales and shifts held as plain parameters."""
    return LayerScale(), torch.randn(7, 3, 8, 8)


@entry
def shared_module() -> tuple[nn.Module, Any]:
    """A module used several times and reachable by two names."""
    return SharedModule(), torch.randn(7, 3, 8, 8)


@entry
def tied_weights() -> tuple[nn.Module, Any]:
    """Two modules that share one parameter, and integer inputs."""
    return TiedWeights(), torch.randint(20, (7, 9))
