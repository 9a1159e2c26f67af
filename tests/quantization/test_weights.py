"""Ranges of weights, and weights that follow their method."""

from __future__ import annotations

import pytest

from tests.quantization.simple import One, compressed, make_net, train_one


def test_a_folded_batch_norm_is_in_the_weights_range() -> None:
    model = make_net()
    target = {"target_settings": {"weight": {"granularity": "tensor"}}}
    result = compressed(model, target=target, fold_batch_norm=True)
    assert result.folded == {"stem/weight": "norm"}
    factor = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    folded = model.stem.weight * factor.reshape(-1, 1, 1, 1)
    assert result.tensors["stem/weight"].scale.item() == pytest.approx(folded.abs().max().item() / 127, rel=1e-5)
    plain = compressed(make_net(), target=target)
    assert plain.folded == {} and plain.tensors["stem/weight"].scale != result.tensors["stem/weight"].scale


def test_binary_weights_are_clamped_after_each_step() -> None:
    """Courbariaux et al., algorithm 1: clip(W, -1, 1); beyond that no gradient would ever bring a weight back."""
    model = One()
    train_one(model, 0.3, 3, method="bnn", backend="none")
    assert float(model.seen[0].abs().max()) > 1
    for weight in model.seen[-2:]:  # as the second and the third step begin
        assert float(weight.abs().max()) == 1.0
