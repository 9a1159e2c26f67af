"""Sizes remember where they come from; equal integers don't."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.provenance import AttributeOf, TrackedInt, size_of, tracked_attributes


def tracked(value: int, name: str = "width") -> TrackedInt:
    return TrackedInt(value, Fraction(1), (AttributeOf("block", name, value),))


def test_products_and_exact_quotients_keep_their_origin() -> None:
    size = size_of(3 * tracked(8) // 2)
    assert (size.value, size.coefficient) == (12, Fraction(3, 2))
    assert size.origins == (AttributeOf("block", "width", 8),)


def test_an_inexact_quotient_and_a_sum_are_plain_numbers() -> None:
    assert size_of(tracked(7) // 2).origins == ()
    assert size_of(tracked(7) + 1).origins == ()


def test_the_product_of_two_tracked_integers_has_both_origins() -> None:
    assert {o.attribute for o in size_of(tracked(4, "heads") * tracked(8, "dim")).origins} == {"heads", "dim"}  # type: ignore[union-attr]


def test_attributes_are_plain_integers_again_afterwards_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    with pytest.raises(RuntimeError), tracked_attributes(model):
        assert type(model[1].num_groups) is TrackedInt
        raise RuntimeError
    assert type(model[1].num_groups) is int
    assert type(model[0].groups) is int


class Reshapes(nn.Module):
    """A convolution whose channels go through one view, whose size comes from `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.width = 8
        self.steps = 8
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        batch, channels, height, width = x.shape
        if self.how == "shape":
            x = x.view(batch, channels, height * width)
        elif self.how == "minus_one":
            x = x.view(batch, -1, height * width)
        elif self.how == "attribute":
            x = x.view(batch, self.width, height * width)
        elif self.how == "literal":
            x = x.view(batch, 8, height * width)
        elif self.how == "other_dimension":  # the image's height is 8 too
            x = x.view(batch, height, height * width)
        elif self.how == "attribute_used_twice":
            x = x.view(batch, self.width, height * width).unflatten(2, (self.width, width)).flatten(2)
        elif self.how == "attribute_used_elsewhere":
            x = x.view(batch, self.width, height * width) * torch.ones(1) + torch.arange(self.width).sum()
        return self.conv2(x.view(batch, -1, height, width))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("shape", None),
        ("minus_one", None),
        ("attribute", None),
        ("literal", "view in the model has the literal size 8"),
        ("other_dimension", "view in the model has the literal size 8"),
        ("attribute_used_twice", "`width` stands for other sizes too"),
        ("attribute_used_elsewhere", "`width` is used elsewhere too"),
    ],
)
def test_a_width_is_prunable_exactly_where_the_forward_can_follow(how: str, expected: str | None) -> None:
    groups = find_channel_groups(capture(Reshapes(how).eval(), (torch.randn(8, 3, 8, 8),)))
    reasons = [u.reason for u in groups.unprunable if (u.tensor, u.dim) == ("conv1.weight", 0)]
    if expected is None:
        assert [width.name for width in groups.widths] == ["conv1"]
        assert reasons == []
        assert [(tie.module, tie.attribute) for tie in groups.ties] == ([("", "width")] if how == "attribute" else [])
    else:
        assert groups.widths == ()
        assert len(reasons) == 1
        assert reasons[0].endswith(expected)
