"""Bias correction: the means it restores, and the biases it puts back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nnicompress.quantization.attach import simulated
from tests.quantization.simple import BATCHES, batches, compressed, make_net


def test_bias_correction_restores_the_mean_output() -> None:
    """With three-bit weights the mean over the calibration's batches is that of the float layer again."""
    target = {"target_names": ["weight"], "target_settings": {"weight": {"quant_dtype": "int3"}}}
    x = torch.cat([x for x, _ in batches()])
    shifts = {}
    for correct in (False, True):
        model = make_net().eval()
        with torch.no_grad():
            wanted = model.norm(model.stem(x)).mean(dim=(0, 2, 3))
        result = compressed(
            model, trains=False, target=target, functions=[], bias_correction=correct, calibration_steps=BATCHES
        )
        model.eval()
        with torch.no_grad(), simulated(model, result):
            shifts[correct] = (model.norm(model.stem(x)).mean(dim=(0, 2, 3)) - wanted).abs().max().item()
    assert shifts[True] < 1e-5 < 1e-3 < shifts[False]


def test_a_calibration_that_is_interrupted_leaves_the_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_net()
    before = copy.deepcopy(model.state_dict())

    def interrupted(*args: Any) -> None:
        assert any(
            not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before
        )
        raise KeyboardInterrupt

    monkeypatch.setattr("nnicompress.quantization.quantizer.calibrate_activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compressed(model, trains=False, target={}, bias_correction=True)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
