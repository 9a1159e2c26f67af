"""Norms over a masked width give what the compact norm gives, and leave nothing behind."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnicompress.errors import ProofError
from nnicompress.graph import capture, find_channel_groups
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.norms import MaskedNorm, RestrictedNorms, masked_norms
from nnicompress.shrink import prove, shrink
from tests.pruning.simple import SimpleEvaluator, digits
from tests.shrink.removals import masked_copy


class RMSNorm(nn.Module):
    """As language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class ChannelsFirst(nn.LayerNorm):
    """Statistics over dimension 1 of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {
    "layer": lambda width: nn.LayerNorm(width),
    "without_weights": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "rms": RMSNorm,
    "torch_rms": lambda width: nn.RMSNorm(width),
    "one_group": lambda width: nn.GroupNorm(1, width),
}


def residual(norm: nn.Module) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Linear(64, 12), norm
            self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(1))
            x = x + self.down(self.up(self.norm(x)).relu())
            return self.head(self.norm(x))

    return Residual().eval()


REMOVAL = {"embed": np.array([0, 3, 4, 7, 11])}


def test_by_hand() -> None:
    norm = nn.LayerNorm(4, eps=0.0)
    handle = RestrictedNorms(
        norm, [MaskedNorm("", -1, np.array([0, 2]), {"weight": 0, "bias": 0}, {"normalized_shape": 2})]
    )
    # Mean of 1 and 5 is 3, their deviation 2; the 100s are left out.
    assert norm(torch.tensor([[1.0, 100.0, 5.0, 100.0]])).tolist() == [[-1.0, 0.0, 1.0, 0.0]]
    handle.remove()
    assert type(norm) is nn.LayerNorm and "_restriction" not in vars(norm)
    handle.remove()


@pytest.mark.parametrize("name", NORMS)
def test_the_masked_model_is_the_compact_one_only_with_its_norms_restricted(name: str) -> None:
    torch.manual_seed(0)
    model = residual(NORMS[name](12))
    x = digits(1, 3)[0][0]
    groups = find_channel_groups(capture(model, (x,)), hidden=True)
    assert [(width.name, width.kind) for width in groups.widths] == [("embed", "hidden"), ("up", "ffn")]
    masked = masked_copy(model, groups, REMOVAL)
    compact = shrink(masked, groups, REMOVAL)
    assert compact.embed.out_features == 7 and getattr(compact.norm, "normalized_shape", (7,)) == (7,)
    assert not torch.allclose(masked(x), compact(x), rtol=1e-2)
    prove(masked, compact, groups, REMOVAL, [((x,), {}), ((x[:2],), {})])
    keys = list(masked.state_dict())
    RestrictedNorms(masked, masked_norms(groups, REMOVAL))
    torch.testing.assert_close(masked(x), compact(x))
    assert list(masked.state_dict()) == keys
    torch.testing.assert_close(copy.deepcopy(masked)(x), compact(x))


def test_a_restricted_norm_can_be_pickled() -> None:
    norm = nn.LayerNorm(4)
    RestrictedNorms(norm, [MaskedNorm("", -1, np.array([0, 2]), {"weight": 0, "bias": 0}, {"normalized_shape": 2})])
    x = torch.randn(3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(norm))(x), norm(x))


def test_channels_first_and_gradients() -> None:
    norm, kept = ChannelsFirst(6), torch.tensor([1, 2, 5])
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    losses = {"normalized_shape": 3}
    RestrictedNorms(norm, [MaskedNorm("", -3, kept.numpy(), {"weight": 0, "bias": 0}, losses)])
    out = norm(x)
    out.square().sum().backward()
    y = x.detach()[:, kept].clone().requires_grad_()
    weight = norm.weight.detach()[kept].clone().requires_grad_()
    expected = F.layer_norm(y.permute(0, 2, 3, 1), (3,), weight).permute(0, 3, 1, 2)
    expected.square().sum().backward()
    torch.testing.assert_close(out[:, kept], expected)
    torch.testing.assert_close(x.grad[:, kept], y.grad)
    torch.testing.assert_close(norm.weight.grad[kept], weight.grad)
    assert x.grad[:, [0, 3, 4]].count_nonzero() == norm.weight.grad[[0, 3, 4]].count_nonzero() == 0


def test_a_statistic_outside_of_a_norm_keeps_the_width() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.layer_norm(self.a(x.flatten(1)), (8,)))

    groups = find_channel_groups(capture(Functional().eval(), (digits(1, 3)[0][0],)), hidden=True)
    assert groups.widths == ()
    reasons = {entry.reason for entry in groups.unprunable if entry.tensor == "a.weight" and entry.dim == 0}
    assert reasons == {"layer_norm in the model takes its statistics over the whole width"}


def test_masks_restrict_norms_while_they_are_attached() -> None:
    torch.manual_seed(0)
    model = residual(nn.LayerNorm(12))
    batches = digits()
    groups = find_channel_groups(capture(model, (batches[0][0],)), hidden=True)
    masks = Masks.from_removal(model, groups.widths, REMOVAL, masked_norms(groups, REMOVAL))
    evaluator = SimpleEvaluator(batches)
    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        evaluator.train(max_steps=3)
        trained = model(batches[0][0]).detach()
        handle.remove()
    assert type(model.norm) is nn.LayerNorm
    compact = shrink(model, groups, REMOVAL)
    torch.testing.assert_close(compact(batches[0][0]), trained)
    with pytest.raises(ProofError):  # the wrong channels left out of the statistics
        other = {"embed": np.array([0, 3, 4, 7, 10])}
        prove(model, shrink(model, groups, other), groups, other, [((batches[0][0],), {})])
