"""Every network of the zoo: proven, counted by hand, and nearly all of its weights prunable.

The counts are written out from the architectures (`c` channels stay where `2 c` were), not read from the code.
"""

import pytest
import torch

from nnicompress.graph.groups import prunable_fraction
from nnicompress.shrink.proof import prove
from nnicompress.shrink.surgery import shrink
from tests.shrink.removals import masked_copy, remove_share, zoo_case
from tests.zoo import ZOO


def conv(i: int, o: int, k: int = 3, groups: int = 1, bias: bool = False) -> int:
    return i // groups * o * k * k + o * bias


def bn(c: int) -> int:
    return 2 * c


def fc(i: int, o: int) -> int:
    return i * o + o


def conv_bn(i: int, o: int, k: int = 3, groups: int = 1) -> int:
    return conv(i, o, k, groups) + bn(o)


def basic_block(i: int, o: int) -> int:
    return conv_bn(i, o) + conv_bn(o, o) + (conv_bn(i, o, 1) if i != o else 0)


def bottleneck(i: int, inner: int, o: int, groups: int = 1) -> int:
    return conv_bn(i, inner, 1) + conv_bn(inner, inner, 3, groups) + conv_bn(inner, o, 1) + (i != o) * conv_bn(i, o, 1)


def inverted_residual(i: int, inner: int, o: int) -> int:
    return (conv_bn(i, inner, 1) if inner != i else 0) + conv_bn(inner, inner, 3, inner) + conv_bn(inner, o, 1)


def dense_layer(i: int, growth: int, inner: int) -> int:
    return bn(i) + conv(i, inner, 1) + bn(inner) + conv(inner, growth)


def shuffle_branch(i: int, inner: int, o: int) -> int:
    return conv_bn(i, inner, 1) + conv_bn(inner, inner, 3, inner) + conv_bn(inner, o, 1)


def unet(a: int, b: int, c: int, up: str) -> int:
    double = [conv_bn(i, o) + conv_bn(o, o) for i, o in ((3, a), (a, b), (b, c), (2 * b, b), (2 * a, a))]
    kernel = 2 if up == "transposed" else 3
    ups = [conv(i, o, kernel, bias=True) for i, o in ((c, b), (b, a))]
    return sum(double) + sum(ups) + conv(a, 3, 1, bias=True)


def two_branches() -> int:
    return conv(3, 5, bias=True) + bn(5) + conv(5, 7, bias=True) + fc(5, 9) + fc(9, 7)


HALVED = {
    "vgg": conv(3, 4, bias=True) + conv(4, 4, bias=True) + conv(4, 6, bias=True) + conv(6, 8, bias=True)
    + conv(8, 8, bias=True) + fc(8 * 4, 10) + fc(10, 10) + fc(10, 10),
    "resnet_basic": conv_bn(3, 4) + 2 * basic_block(4, 4) + basic_block(4, 8) + basic_block(8, 8)
    + basic_block(8, 16) + basic_block(16, 16) + fc(16, 10),
    "resnet_bottleneck": conv_bn(3, 4, 7) + bottleneck(4, 4, 16) + bottleneck(16, 4, 16)
    + bottleneck(16, 8, 32) + bottleneck(32, 8, 32) + fc(32, 10),
    # Two of the four groups of each grouped convolution go, with all of their 4 (stage 2: 8) channels.
    "resnext": conv_bn(3, 4) + bottleneck(4, 8, 16, 2) + bottleneck(16, 8, 16, 2)
    + bottleneck(16, 16, 32, 2) + bottleneck(32, 16, 32, 2) + fc(32, 10),
    "mobilenet_v2": conv_bn(3, 4) + inverted_residual(4, 4, 4) + 2 * inverted_residual(4, 24, 4)
    + inverted_residual(4, 24, 8) + inverted_residual(8, 48, 8) + conv_bn(8, 16, 1) + fc(16, 10),
    "densenet": conv(3, 6) + sum(dense_layer(6 + 3 * n, 3, 12) for n in range(3)) + bn(15) + conv(15, 8, 1)
    + sum(dense_layer(8 + 3 * n, 3, 12) for n in range(3)) + bn(17) + fc(17, 10),
    "unet": unet(4, 8, 12, "transposed"),
    "unet_nearest": unet(4, 8, 12, "nearest"),
    "unet_bilinear": unet(4, 8, 12, "bilinear"),
    "unet_group_norm": unet(4, 8, 12, "nearest"),
    # The shuffle ties what a unit passes on: 2 of 3 groups of 4 channels stay in stage 1, 5 of 10 groups of 2 in 2.
    "shufflenet_v2": conv_bn(3, 6) + conv_bn(6, 6, 3, 6) + conv_bn(6, 8, 1) + shuffle_branch(6, 6, 8)
    + 2 * shuffle_branch(8, 6, 8) + conv_bn(16, 16, 3, 16) + conv_bn(16, 10, 1) + shuffle_branch(16, 10, 10)
    + shuffle_branch(10, 10, 10) + conv_bn(20, 16, 1) + fc(16, 10),
    "multilayer_perceptron": fc(36, 12) + fc(12, 8) + fc(8, 10),
    "two_inputs_cat": two_branches() + fc(14, 6) + fc(6, 4),
    "two_inputs_add": two_branches() + fc(7, 6) + fc(6, 4),
    "dict_output": conv(3, 6, bias=True) + conv(6, 8, bias=True) + conv(8, 5, bias=True) + conv(5, 4, 1, bias=True)
    + fc(8, 5),
    "squeeze_excite": conv(3, 8, bias=True) + 2 * (conv_bn(8, 8) + conv(8, 3, 1, bias=True) + conv(3, 8, 1, bias=True))
    + fc(8, 4),
    "coincidence": conv(3, 4, bias=True) + 2 * conv(4, 4, bias=True) + fc(4 * 4, 4) + fc(4, 8),
    "shared_module": conv(3, 6, bias=True) + conv(6, 6, bias=True) + fc(6, 5),
    "layer_scale": conv(3, 6, bias=True) + conv(6, 6, bias=True) + 6 + fc(6, 9) + 2 * 9 + fc(9, 5),
    "tied_weights": 20 * 6 + fc(6, 12) + fc(12, 6),
}  # fmt: skip

PARTLY_UNPRUNABLE = {
    "convnext": "takes its statistics over the whole width",  # layer norm over the residual width
}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_compact_equals_masked_and_most_weights_are_prunable(name: str) -> None:
    model, groups, batches = zoo_case(name)
    for share in (0.5, 0.3):
        removal = remove_share(groups, share)
        masked = masked_copy(model, groups, removal)
        before = {key: value.clone() for key, value in masked.state_dict().items()}
        compact = shrink(masked, groups, removal)
        proof = prove(masked, compact, groups, removal, batches)
        assert proof.precision == "float64"
        assert max(proof.max_relative_difference, proof.twin_relative_difference) < 1e-12
        assert all(torch.equal(before[key], value) for key, value in masked.state_dict().items())
    if name in PARTLY_UNPRUNABLE:
        assert any(PARTLY_UNPRUNABLE[name] in u.reason for u in groups.unprunable)
    else:
        assert prunable_fraction(model, groups) >= 0.9


@pytest.mark.parametrize("name", sorted(HALVED))
def test_parameters_after_halving_are_those_counted_by_hand(name: str) -> None:
    model, groups, _ = zoo_case(name)
    removal = remove_share(groups, 0.5)
    compact = shrink(masked_copy(model, groups, removal), groups, removal)
    assert sum(parameter.numel() for parameter in compact.parameters()) == HALVED[name]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_compact_model_trains_and_its_attributes_tell_the_truth(name: str) -> None:
    model, groups, batches = zoo_case(name)
    removal = remove_share(groups, 0.5)
    compact = shrink(masked_copy(model, groups, removal), groups, removal).train()
    args, kwargs = batches[0]
    output = compact(*args, **kwargs)
    loss = sum(leaf.square().sum() for leaf in (output.values() if isinstance(output, dict) else [output]))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in compact.parameters())
    for module in compact.modules():
        if isinstance(module, torch.nn.modules.conv._ConvTransposeNd):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
        elif isinstance(module, torch.nn.modules.conv._ConvNd):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and len(module.running_mean) == module.num_features
        elif isinstance(module, torch.nn.GroupNorm):
            assert len(module.weight) == module.num_channels


def test_only_the_attribute_that_follows_the_width_is_rewritten() -> None:
    model, groups, _ = zoo_case("coincidence")
    removal = remove_share(groups, 0.5)
    compact = shrink(masked_copy(model, groups, removal), groups, removal)
    assert (compact.hidden, compact.image_size, compact.num_steps) == (4, 8, 8)
    assert (model.hidden, model.image_size, model.num_steps) == (8, 8, 8)


def test_tied_and_shared_tensors_stay_one_tensor() -> None:
    model, groups, _ = zoo_case("tied_weights")
    compact = shrink(model, groups, remove_share(groups, 0.5))
    assert compact.head.weight is compact.embedding.weight
    model, groups, _ = zoo_case("shared_module")
    compact = shrink(model, groups, remove_share(groups, 0.5))
    assert compact.shared is compact.alias
