"""Transformers' models: their functional attention, Conv1D and gradient checkpointing, trained quantized."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.modules import SWAPS
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult
from nnicompress.trace import trace

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
TOKENS = torch.randint(2, 40, (4, 6, 7), generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SMALL, num_labels=2))


def albert() -> nn.Module:
    """One layer that runs twice."""
    return AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=8, num_labels=2))


def gpt2() -> nn.Module:
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1))


MODELS = {"bert": bert, "albert": albert, "gpt2": gpt2, "llama": llama}


def make(name: str) -> Any:
    torch.manual_seed(1)
    return MODELS[name]()


def loop(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
    model.train()
    for number in range(max_steps or 4 * max_epochs):
        optimizers.zero_grad()
        step(TOKENS[number % len(TOKENS)], model).backward()
        optimizers.step()


def training_step(batch: Tensor, model: nn.Module) -> Tensor:
    return model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.float().square().mean()


def quantized(model: nn.Module, **settings: Any) -> QuantizationResult:
    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.01), training_step)
    torch.manual_seed(2)
    return Quantizer([{}], evaluator, calibration_steps=4, **settings).compress(model, max_steps=4)


def test_the_first_gpt2_of_a_process_is_recorded_like_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SWAPS, Conv1D, raising=False)  # as it is before any model was quantized
    model = make("gpt2")
    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.01), training_step)
    plan = Quantizer([{}], evaluator).check(model)
    assert {name for name, module in model.named_modules() if isinstance(module, Conv1D)} <= set(plan.layers)
    assert not plan.unquantized


@pytest.mark.parametrize("method", ["observed", "lsq"])
@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_stay_near(name: str, method: str) -> None:
    model = make(name)
    result = quantized(model, method=method)
    attention = {place for place in result.tensors if place.endswith("/probabilities")}
    assert len(attention) == (1 if name == "albert" else 2)
    assert len([place for place in result.tensors if place.endswith("/weight")]) >= 8
    model.eval()
    with torch.no_grad():
        plain = model(TOKENS[0]).logits
        with simulated(model, result):
            found = model(TOKENS[0]).logits
    noise, signal = (found - plain).square().mean(), plain.square().mean()
    # LSQ begins with 2 mean|x| / sqrt(127), a range of 22 times the mean: four times too wide, so 12 dB worse.
    assert 0 < noise < (0.01 if method == "observed" else 0.16) * signal


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(name)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.use_cache = False
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        result = quantized(model)
        found.append((result, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
    (one, weights), (other, other_weights) = found
    assert one.tensors.keys() == other.tensors.keys()
    for place, tensor in one.tensors.items():
        assert torch.equal(tensor.scale, other.tensors[place].scale), place
    for key, value in weights.items():
        assert torch.equal(value, other_weights[key]), key
