"""The proof has teeth: it fails for every index that is wrong, on every network."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.errors import ProofError
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import ChannelGroups
from nnicompress.shrink.proof import prove
from nnicompress.shrink.surgery import shrink
from tests.shrink.removals import masked_copy, remove_share, zoo_case
from tests.zoo import ZOO


@pytest.mark.parametrize("name", sorted(ZOO))
def test_swapping_two_kept_indices_in_any_slot_fails_the_proof(name: str) -> None:
    model, groups, batches = zoo_case(name)
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    compact = shrink(masked, groups, removal)
    tensors = dict([*compact.named_parameters(), *compact.named_buffers()])
    swapped = 0
    for slot in (slot for width in groups.widths for slot in width.slots):
        tensor = tensors[slot.tensor]
        order = torch.arange(tensor.shape[slot.dim])
        if len(order) < 2:
            continue
        order[[0, -1]] = order[[-1, 0]]
        original = tensor.data
        tensor.data = original.index_select(slot.dim, order)
        with pytest.raises(ProofError):
            prove(masked, compact, groups, removal, batches[:1])
        tensor.data = original
        swapped += 1
    assert swapped >= len(groups.widths)
    prove(masked, compact, groups, removal, batches[:1])


def tampered(groups: ChannelGroups, width_number: int, slot_number: int, removed: int, kept: int) -> ChannelGroups:
    """The same groups, but in one slot a removed and a kept channel group have changed places."""
    width = groups.widths[width_number]
    indices = width.slots[slot_number].indices.copy()
    indices[[removed, kept]] = indices[[kept, removed]]
    slots = list(width.slots)
    slots[slot_number] = dataclasses.replace(slots[slot_number], indices=indices)
    widths = list(groups.widths)
    widths[width_number] = dataclasses.replace(width, slots=tuple(slots))
    return dataclasses.replace(groups, widths=tuple(widths))


def check_wrong_groups(name: str, most: int | None) -> None:
    model, groups, batches = zoo_case(name)
    removal = remove_share(groups, 0.5)
    cases = [(w, s) for w, width in enumerate(groups.widths) for s in range(len(width.slots))]
    if most is not None and len(cases) > most:
        cases = [cases[i] for i in np.random.default_rng(0).choice(len(cases), most, replace=False)]
    for w, s in cases:
        width = groups.widths[w]
        kept = np.setdiff1d(np.arange(width.size), removal[width.name])
        wrong = tampered(groups, w, s, int(removal[width.name][0]), int(kept[-1]))
        masked = masked_copy(model, wrong, removal)
        with pytest.raises(ProofError):
            prove(masked, shrink(masked, wrong, removal), wrong, removal, batches[:1])


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_wrong_channel_group_fails_the_proof(name: str) -> None:
    check_wrong_groups(name, most=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_wrong_channel_group_in_any_slot_fails_the_proof(name: str) -> None:
    check_wrong_groups(name, most=None)


def test_the_error_names_the_first_module_that_differs() -> None:
    model, groups, batches = zoo_case("resnet_basic")
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    compact = shrink(masked, groups, removal)
    with torch.no_grad():
        compact.layer2[1].conv1.weight[0] += 1
    with pytest.raises(ProofError, match=r"first module that differs: layer2\.1\.conv1$"):
        prove(masked, compact, groups, removal, batches)


def test_a_fault_behind_a_dead_channel_is_found_in_the_tensors() -> None:
    model, groups, batches = zoo_case("multilayer_perceptron")
    with torch.no_grad():  # nothing gets through the first layer: no output can show what is wrong behind it
        model.layers[0].weight.zero_()
        model.layers[0].bias.fill_(-1)
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    compact = shrink(masked, groups, removal)
    second = next(m for m in list(compact.modules())[2:] if isinstance(m, nn.Linear) and m.in_features == 12)
    second.weight.data = second.weight.data.flip(1)
    with pytest.raises(ProofError, match="is not the masked model's at the kept indices"):
        prove(masked, compact, groups, removal, batches)


def test_a_model_that_is_not_masked_fails_the_proof() -> None:
    model, groups, batches = zoo_case("vgg_bn")
    removal = remove_share(groups, 0.5)
    with pytest.raises(ProofError):
        prove(model, shrink(model, groups, removal), groups, removal, batches)


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    model, groups, batches = zoo_case("multilayer_perceptron")
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    with torch.no_grad():
        masked.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(ProofError):
        prove(masked, copy.deepcopy(shrink(masked, groups, removal)), groups, removal, batches)


def test_a_forward_bound_to_float32_is_proven_in_float32() -> None:
    class Float32Only(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.to(torch.float32))

    model = Float32Only(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(6, 4)
    groups = find_channel_groups(capture(model, (x,)))
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    proof = prove(masked, shrink(masked, groups, removal), groups, removal, [((x,), {}), ((x[:2],), {})])
    assert (proof.precision, proof.tolerance, proof.batch_sizes) == ("float32", 1e-4, (6, 2))


def test_a_branch_that_only_training_takes_must_fit_too() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu()
            return self.head(hidden) + self.aux(hidden) if self.training else self.head(hidden)

    model, x = Auxiliary().eval(), torch.randn(6, 4)
    groups = find_channel_groups(capture(model, (x,)))
    removal = remove_share(groups, 0.5)
    masked = masked_copy(model, groups, removal)
    with pytest.raises(ProofError, match="fails in training mode"):
        prove(masked, shrink(masked, groups, removal), groups, removal, [((x,), {})])
