"""Operators one by one: what stays prunable, what doesn't and why; whatever is pruned is proven."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnicompress.graph import capture, find_channel_groups
from nnicompress.shrink import prove, shrink
from tests.shrink.removals import masked_copy, remove_share

IMAGE, TOKENS, VECTOR = (4, 3, 8, 8), (4, 5, 6), (4, 6)


class Model(nn.Module):
    """Layers by name, and a forward given as a function of them."""

    def __init__(self, forward: Callable[["Model", Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._body = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._body(self, x)


def conv(i: int, o: int, k: int = 3, **kwargs: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **kwargs)


def functional_groups(m: Model, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    return m.c(F.conv2d(x, m.b.weight, m.b.bias, groups=x.shape[1]))


def slice_assignment(m: Model, x: Tensor) -> Tensor:
    y = m.a(x)
    z = torch.zeros_like(y)
    z[:, :4] = y[:, 4:]
    return m.b(z)


def attention(m: Model, x: Tensor) -> Tensor:
    scores = (m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1)
    return m.o(scores @ m.v(x))


def grouped_attention(m: Model, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


PRUNABLE = {
    "glu": (Model(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(3, 16), b=conv(8, 4)), IMAGE, {"a": 8}),
    "pixel_shuffle": (
        Model(lambda m, x: m.b(m.s(m.p(m.a(x)))), a=conv(3, 16), p=nn.PixelShuffle(2), s=nn.PReLU(4), b=conv(4, 2)),
        IMAGE,
        {"a": 4},
    ),
    "functional_groups": (
        Model(functional_groups, a=conv(3, 16), b=conv(16, 16, groups=16), c=conv(16, 2)),
        IMAGE,
        {"a": 16},
    ),
    "matmul_with_a_parameter": (
        Model(
            lambda m, x: m.o(F.relu(F.relu(m.a(x)) @ m.w)),
            a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(8, 10)), o=nn.Linear(10, 3),
        ),
        VECTOR,
        {"a": 8, "w": 10},
    ),
    "stack_and_sum": (
        Model(lambda m, x: m.b(torch.stack([m.a(x), m.a(x).sigmoid()]).sum(0)), a=conv(3, 8), b=conv(8, 2)),
        IMAGE,
        {"a": 8},
    ),
    "instance_norm_and_resize": (
        Model(
            lambda m, x: m.b(F.interpolate(m.n(m.a(x)), size=(5, 5), mode="bilinear")),
            a=conv(3, 8), n=nn.InstanceNorm2d(8, affine=True), b=conv(8, 2),
        ),
        IMAGE,
        {"a": 8},
    ),
    "expand_as_gate": (
        Model(lambda m, x: m.b(m.a(x) * m.g(x.mean((2, 3)))[:, :, None, None].expand_as(m.a(x))),
              a=conv(3, 8), g=nn.Linear(3, 8), b=conv(8, 2)),
        IMAGE,
        {"a": 8},
    ),
    "norm_groups": (
        Model(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 12), n=nn.GroupNorm(4, 12), b=conv(12, 2)),
        IMAGE,
        {"a": 4},
    ),
    "flip_and_repeat_over_space": (
        Model(lambda m, x: m.b(m.a(x).flip(3).permute(0, 2, 3, 1).flatten(1, 2).mean(1)), a=conv(3, 8),
              b=nn.Linear(8, 2)),
        IMAGE,
        {"a": 8},
    ),
    "grouped_transposed_convolution": (
        Model(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 12, 2, 2, groups=4), c=conv(12, 2)),
        IMAGE,
        {"a": 4},
    ),
}  # fmt: skip

PRUNABLE |= {
    "casts_and_where": (
        Model(lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), 0.0).to(x.dtype).float()), a=conv(3, 8), b=conv(8, 2)),
        IMAGE,
        {"a": 8},
    ),
    "view_as": (
        Model(lambda m, x: m.b(m.a(x).flatten(1).view_as(m.a(x))), a=conv(3, 8), b=conv(8, 2)), IMAGE, {"a": 8},
    ),
    "created_like_its_shape": (
        Model(lambda m, x: m.b(m.a(x) + torch.ones(m.a(x).shape)), a=conv(3, 8), b=conv(8, 2)), IMAGE, {"a": 8},
    ),
    "attention_scores": (
        Model(attention, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 10), o=nn.Linear(10, 3)),
        TOKENS,
        {"q": 8, "v": 10},
    ),
    "contracted_with_one_side_zero": (
        Model(lambda m, x: m.q(x).sigmoid() @ m.k(x).transpose(1, 2), q=nn.Linear(6, 8), k=nn.Linear(6, 8)),
        TOKENS,
        {"q": 8},
    ),
    "repeated_over_the_batch": (
        Model(lambda m, x: m.b(m.a(x) * m.t.repeat(x.shape[0], 1, 1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3),
              t=nn.Parameter(torch.randn(5, 8))),
        TOKENS,
        {"a": 8},
    ),
    "one_shape_for_two_layers": (  # the second layer is given the size of the first: both lose the same
        Model(lambda m, x: m.c(m.b(m.a(x)).reshape(x.shape[0], m.a(x).shape[1], -1).mean(2)), a=conv(3, 8),
              b=conv(8, 8), c=nn.Linear(8, 2)),
        IMAGE,
        {"a": 8},
    ),
    "rolled_over_positions": (
        Model(lambda m, x: m.b(m.a(x).roll(2, 1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)), TOKENS, {"a": 8},
    ),
    "looked_up_by_index": (
        Model(lambda m, x: m.b((m.a(x) * m.t[m.i])[:, torch.tensor([2, 0])]), a=nn.Linear(6, 8), b=nn.Linear(8, 3),
              t=nn.Parameter(torch.randn(4, 8)), i=nn.Parameter(torch.tensor([3, 1, 1, 0, 2]), False)),
        TOKENS,
        {"a": 8},
    ),
    "grouped_query_attention": (
        Model(grouped_attention, q=nn.Linear(6, 24), k=nn.Linear(6, 12), v=nn.Linear(6, 12), o=nn.Linear(24, 3)),
        TOKENS,
        {"q": 3},
    ),
    "a_leaf_s_width_read_as_a_number": (
        Model(lambda m, x: m.b(m.a(x)) * m.b.in_features**-0.5, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), VECTOR, {"a": 8},
    ),
}  # fmt: skip

FIXED = {
    "divided_by_its_width": (
        Model(lambda m, x: m.b(m.a(x) / m.a(x).shape[1]), a=conv(3, 8), b=conv(8, 2)), IMAGE, "a",
        "its size is used as a number in the forward",
    ),
    "scaled_by_a_power_of_its_width": (
        Model(lambda m, x: m.b(m.a(x) * m.a(x).size(1) ** -0.5), a=conv(3, 8), b=conv(8, 2)), IMAGE, "a",
        "its size is used as a number in the forward",
    ),
    "a_branch_on_its_width": (
        Model(lambda m, x: m.b(m.a(x)) if m.a(x).shape[1] > 6 else m.b(m.a(x)) * 2, a=conv(3, 8), b=conv(8, 2)),
        IMAGE, "a", "its size is used as a number in the forward",
    ),
    "variance_over_everything": (
        Model(lambda m, x: m.b(m.a(x) / m.a(x).var(False)), a=conv(3, 8), b=conv(8, 2)), IMAGE, "a",
        "var in the model reduces over this dimension",
    ),
    "reflected_channels": (
        Model(lambda m, x: m.b(F.pad(m.a(x), (1, 1), mode="reflect")), a=nn.Linear(6, 8), b=nn.Linear(10, 3)),
        TOKENS, "a", "pad in the model pads it",
    ),
    "computed_number_from_the_end": (
        Model(lambda m, x: m.b(m.a(x)[:, -(m.a(x).shape[1] // 2) :]), a=conv(3, 8), b=conv(4, 2)), IMAGE, "a",
        "slice in the model counts a computed number of indices from the end",
    ),
    "different_queries_and_keys": (
        Model(lambda m, x: m.b(m.m(m.a(x), m.a(x), m.a(x))[0]), a=nn.Linear(6, 8), m=nn.MultiheadAttention(8, 2),
              b=nn.Linear(8, 3)), TOKENS, "a", "multi_head_attention_forward checks its sizes",
    ),
    "softmax": (
        Model(lambda m, x: m.b(m.a(x).softmax(-1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)), VECTOR, "a",
        "softmax in the model works along this dimension",
    ),
    "layer_norm": (
        Model(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(6, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 3)), VECTOR, "a",
        "layer_norm in n takes its statistics over the whole width",
    ),
    "one_norm_group": (
        Model(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 8), n=nn.GroupNorm(1, 8), b=conv(8, 3)), IMAGE, "a",
        "group_norm in n takes its statistics over the whole width",
    ),
    "slice_assignment": (
        Model(slice_assignment, a=conv(3, 8), b=conv(8, 2)), IMAGE, "a",
        "slice in the model counts 4 indices by a literal number",
    ),
    "einsum": (
        Model(lambda m, x: m.b(torch.einsum("ni,ij->nj", m.a(x), m.w)), a=nn.Linear(6, 8),
              w=nn.Parameter(torch.randn(8, 8)), b=nn.Linear(8, 3)), VECTOR, "a",
        "einsum in the model is an operator without a rule",
    ),
    "contracted_behind_a_sigmoid": (
        Model(lambda m, x: m.q(x).sigmoid() @ m.k(x).sigmoid().transpose(1, 2), q=nn.Linear(6, 8), k=nn.Linear(6, 8)),
        TOKENS, "q", "matmul in the model sums over it, and what is masked is not zero there",
    ),
    "attention_scaled_by_its_size": (
        Model(lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), x)), q=nn.Linear(6, 8),
              k=nn.Linear(6, 8), o=nn.Linear(6, 3)), TOKENS, "q",
        "scaled_dot_product_attention in the model divides by the root of this dimension's size",
    ),
    "channel_mean": (
        Model(lambda m, x: m.a(x) - m.a(x).mean(1, keepdim=True), a=conv(3, 8)), IMAGE, "a",
        "mean in the model reduces over this dimension",
    ),
    "recurrent": (
        Model(lambda m, x: m.b(m.g(m.a(x))[0]), a=nn.Linear(6, 8), g=nn.GRU(8, 12, batch_first=True),
              b=nn.Linear(12, 3)), TOKENS, "a",
        "gru in g is an operator without a rule",
    ),
    "output": (Model(lambda m, x: m.a(x), a=conv(3, 8)), IMAGE, "a", "it is an output of the model"),
    "picked_index": (
        Model(lambda m, x: m.b(m.a(x) * m.a(x)[:, 2:3]), a=conv(3, 8), b=conv(8, 3)), IMAGE, "a",
        "slice in the model counts 2 indices by a literal number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRUNABLE))
def test_prunable_operators_are_followed_and_proven(name: str) -> None:
    model, shape, expected = PRUNABLE[name]
    model.eval()
    x = torch.randn(shape)
    groups = find_channel_groups(capture(model, (x,)))
    assert {width.name: width.size for width in groups.widths} == expected
    removal = remove_share(groups, 0.4)
    masked = masked_copy(model, groups, removal)
    prove(masked, shrink(masked, groups, removal), groups, removal, [((x,), {}), ((x[:2],), {})])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, on recurrent layers
@pytest.mark.parametrize("name", sorted(FIXED))
def test_what_must_stay_is_said_with_the_reason(name: str) -> None:
    model, shape, layer, reason = FIXED[name]
    model.eval()
    x = torch.randn(shape)
    groups = find_channel_groups(capture(model, (x,)))
    reasons = {u.reason for u in groups.unprunable if u.tensor == f"{layer}.weight" and u.dim == 0}
    assert reason in reasons
    removal = remove_share(groups, 0.4)
    masked = masked_copy(model, groups, removal)
    prove(masked, shrink(masked, groups, removal), groups, removal, [((x,), {}), ((x[:2],), {})])
