"""What a measurement must not change, and what it must see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnicompress.evaluators.preserve import in_evaluation


class Dropping(nn.Module):
    """Drops values by functions in its own forward, as many a first network does, and in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.inner(x), 0.5, self.training)
        x = functional.dropout2d(x[:, :, None, None], training=self.training)[:, :, 0, 0]
        heads = x.view(2, 1, 4, 8)
        heads = functional.scaled_dot_product_attention(
            heads, heads, heads, dropout_p=0.5 if self.training else 0.0
        ) + functional.scaled_dot_product_attention(heads, heads, heads, None, 0.5 if self.training else 0.0)
        return functional.alpha_dropout(heads, 0.5, self.training)


def test_nothing_is_dropped_in_evaluation_whatever_the_loop_says() -> None:
    torch.manual_seed(0)
    model, x = Dropping(), torch.randn(8, 8)
    expected = model.eval()(x)
    model.train()
    assert not torch.equal(model(x), expected), "the test's premise"
    with in_evaluation(model):
        model.train()
        assert torch.equal(model(x), expected)
        assert model.training and not model.inner[1].training
    model.train()
    assert not torch.equal(model(x), expected), "afterwards it drops again"
