"""The families of transformers as tiny random models, each in the shape that its library builds it.

`FAMILIES[name]()` gives `(model, example, other)`: the model in eval mode, an input, and one of another batch size and
(where the model takes one) another length or image size. No two widths of a model that could be confused are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

OUTPUTS = {"t5": ("logits",), "whisper": ("logits",), "detr": ("logits", "pred_boxes")}
"""Families that return hidden states besides: the entries of their results that keep their sizes."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Family = tuple[nn.Module, Inputs, Inputs]
FAMILIES: dict[str, Callable[[], Family]] = {}

ENCODER = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**ENCODER, **TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "use_cache": False}
VISION = {**ENCODER, "image_size": 32, "patch_size": 8, "num_labels": 5}


def family(function: Callable[[], Family]) -> Callable[[], Family]:
    """Register a family under its name; its weights are seeded."""

    @functools.wraps(function)
    def build() -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, example, other = function()
        return model.eval(), example, other

    FAMILIES[function.__name__] = build
    return build


def images(batch: int, size: int) -> Inputs:
    return (), {"pixel_values": torch.randn(batch, 3, size, size)}


def tokens(batch: int, length: int) -> Inputs:
    return (), {"input_ids": torch.randint(3, 60, (batch, length))}


def masked_tokens(batch: int, length: int) -> Inputs:
    """Tokens of which the last two of the first text are padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, -2:] = 0
    return (), {**tokens(batch, length)[1], "attention_mask": mask}


@family
def resnet() -> Family:
    """Bottlenecks with batch norm."""
    config = transformers.ResNetConfig(
        embedding_size=12, hidden_sizes=[16, 24], depths=[2, 2], layer_type="bottleneck", num_labels=5
    )
    return transformers.ResNetForImageClassification(config), images(2, 32), images(3, 48)


@family
def convnext() -> Family:
    """Layer norms in both memory layouts, layer scales."""
    config = transformers.ConvNextConfig(hidden_sizes=[16, 24], depths=[2, 2], num_stages=2, num_labels=5)
    return transformers.ConvNextForImageClassification(config), images(2, 32), images(3, 64)


@family
def mobilenet_v2() -> Family:
    """Depthwise convolutions behind explicit padding."""
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=5)
    return transformers.MobileNetV2ForImageClassification(config), images(2, 32), images(3, 64)


@family
def vit() -> Family:
    """A class token and a table of positions as plain parameters."""
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION)), images(2, 32), images(3, 32)


@family
def deit() -> Family:
    """Two tokens, two heads."""
    model = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**VISION))
    return model, images(2, 32), images(3, 32)


@family
def swin() -> Family:
    """Shifted windows, relative position biases, merging of patches."""
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=5
    )
    return transformers.SwinForImageClassification(config), images(2, 32), images(3, 32)


@family
def segformer() -> Family:
    """Spatial reduction by strided convolutions, depthwise convolutions between linear layers, an MLP decoder."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=3, depths=[1, 1, 1], sr_ratios=[4, 2, 1], hidden_sizes=[8, 12, 24],
        num_attention_heads=[2, 3, 4], patch_sizes=[7, 3, 3], strides=[4, 2, 2], mlp_ratios=[2, 2, 2],
        decoder_hidden_size=20, num_labels=5,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config), images(2, 32), images(3, 64)


@family
def bert() -> Family:
    """Post-norm attention, a pooler."""
    config = transformers.BertConfig(**ENCODER, **TEXT, num_labels=5)
    return transformers.BertForSequenceClassification(config), masked_tokens(2, 9), masked_tokens(3, 7)


@family
def distilbert() -> Family:
    """Its own names for everything."""
    config = transformers.DistilBertConfig(
        vocab_size=60, dim=40, n_layers=2, n_heads=4, hidden_dim=56, pad_token_id=0, num_labels=5
    )
    return transformers.DistilBertForSequenceClassification(config), masked_tokens(2, 9), masked_tokens(3, 7)


@family
def roberta() -> Family:
    """Positions counted from the padding token; a head tied to the embeddings."""
    config = transformers.RobertaConfig(**ENCODER, **TEXT)
    return transformers.RobertaForMaskedLM(config), masked_tokens(2, 9), masked_tokens(3, 7)


@family
def albert() -> Family:
    """One layer used for all, factored embeddings."""
    config = transformers.AlbertConfig(**ENCODER, **TEXT, embedding_size=16, num_labels=5)
    return transformers.AlbertForSequenceClassification(config), masked_tokens(2, 9), masked_tokens(3, 7)


@family
def gpt2() -> Family:
    """Conv1D, one projection for queries, keys and values, tied embeddings."""
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=40, n_layer=2, n_head=4, n_inner=56, n_positions=32, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), tokens(2, 9), tokens(3, 7)


@family
def llama() -> Family:
    """Grouped queries, rotary embeddings, gated feed-forward layers."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)), tokens(2, 9), tokens(3, 7)


@family
def qwen2() -> Family:
    """The same with biases and tied embeddings."""
    config = transformers.Qwen2Config(**DECODER, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config), tokens(2, 9), tokens(3, 7)


@family
def t5() -> Family:
    """Encoder and decoder, cross-attention, biases of relative positions that all layers share."""
    config = transformers.T5Config(
        vocab_size=60, d_model=40, d_kv=6, d_ff=56, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip

    def texts(batch: int, length: int) -> Inputs:
        return (), {**tokens(batch, length)[1], "decoder_input_ids": torch.randint(3, 60, (batch, length - 2))}

    return transformers.T5ForConditionalGeneration(config), texts(2, 9), texts(3, 7)


@family
def whisper() -> Family:
    """Convolutions over sound, sinusoidal positions, cross-attention."""
    config = transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=10, d_model=40, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=48, max_source_positions=12,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip

    def sound(batch: int, length: int) -> Inputs:
        features: Tensor = torch.randn(batch, 10, 24)
        return (), {"input_features": features, "decoder_input_ids": torch.randint(3, 60, (batch, length))}

    return transformers.WhisperForConditionalGeneration(config), sound(2, 9), sound(3, 7)


@family
def detr() -> Family:
    """A backbone with frozen batch norms, object queries, positions from a mask."""
    backbone = transformers.ResNetConfig(
        embedding_size=12, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=40,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=56,
        decoder_ffn_dim=48, num_queries=6, num_labels=5,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), images(2, 64), images(3, 96)
