"""The zoo itself: every entry runs, is reproducible, and notices a swapped channel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo import ZOO, perturb_norms, random_inputs

REQUIRED = {
    "vgg", "resnet_basic", "resnet_bottleneck", "mobilenet_v2", "densenet", "unet", "unet_nearest", "unet_bilinear",
    "unet_group_norm", "shufflenet_v2", "resnext", "multilayer_perceptron", "two_inputs_cat", "two_inputs_add",
    "dict_output", "keyword_arguments", "squeeze_excite", "coincidence", "conv1d", "conv3d", "padded_sliced",
    "pad_shortcut", "layer_scale", "shared_module", "tied_weights", "convnext",
}  # fmt: skip


def run(model: nn.Module, inputs) -> torch.Tensor:
    args, kwargs = inputs
    with torch.no_grad():
        output = model(*args, **kwargs)
    tensors = output.values() if isinstance(output, dict) else [output]
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def test_nothing_is_missing():
    assert set(ZOO) >= REQUIRED


@pytest.mark.parametrize("name", ZOO)
def test_runs_at_two_batch_sizes_and_is_reproducible(name):
    model, inputs = ZOO[name]()
    perturb_norms(model)
    again, same_inputs = ZOO[name]()
    perturb_norms(again)
    output = run(model, inputs)
    assert torch.equal(output, run(again, same_inputs))
    larger = run(model, random_inputs(inputs, 5, seed=1))
    assert larger.shape == (5, *output.shape[1:])
    assert larger.isfinite().all() and (larger.std(dim=0) > 1e-6).any()


@pytest.mark.parametrize("name", ZOO)
def test_a_swapped_index_shows(name):
    """After `perturb_norms`, swapping two indices in either dimension of any weight changes what comes out."""
    model, inputs = ZOO[name]()
    perturb_norms(model)
    before = run(model, inputs)
    unnoticed, swaps = [], 0
    for parameter_name, parameter in model.named_parameters():
        for dim in range(min(parameter.dim(), 2)):
            last = parameter.shape[dim] - 1
            for pair in {(0, 1), (last - 1, last)} if last > 0 else ():
                original = parameter.detach().clone()
                with torch.no_grad():
                    parameter.index_copy_(dim, torch.tensor(pair), original.index_select(dim, torch.tensor(pair[::-1])))
                    change = (run(model, inputs) - before).abs().max() / before.abs().max()
                    parameter.copy_(original)
                swaps += 1
                if change < 1e-5:
                    unnoticed.append((parameter_name, dim, pair))
    assert swaps > 5
    assert not unnoticed


def test_the_example_batch_is_not_a_channel_count():
    """No width is 7, so a batch dimension taken for another shows; `coincidence` is equal on purpose."""
    for name, build in ZOO.items():
        _, (args, kwargs) = build()
        sizes = {value.shape[0] for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)}
        assert sizes == ({8} if name == "coincidence" else {7})
