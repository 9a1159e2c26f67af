"""Configs of transformers follow uniform widths, and load the compact model; what they can't say is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.graph import capture, find_channel_groups
from nnicompress.graph.widths import ChannelGroups
from nnicompress.models.outputs import OneOutput
from nnicompress.shrink import apply_config, follow_config, shrink
from tests.graph.families import FAMILIES, OUTPUTS, Inputs
from tests.shrink.removals import masked_copy, remove_share
from tests.zoo import perturb_norms

EVERYTHING = ("heads", "ffn", "hidden", "channels")


def compacted(name: str, *kinds: str) -> tuple[nn.Module, ChannelGroups, Inputs]:
    """Half of every width of these kinds is gone."""
    model, example, _ = FAMILIES[name]()
    perturb_norms(model)
    captured = capture(model, *example, outputs=OUTPUTS.get(name, ()))
    groups = find_channel_groups(captured, inside_heads="head_dim" in kinds, hidden="hidden" in kinds)
    removal = {n: gone for n, gone in remove_share(groups, 0.5).items() if groups[n].kind in kinds}
    return shrink(masked_copy(model, groups, removal), groups, removal), groups, example


# Half of what tests/graph/families.py builds: width 40, 4 heads, feed-forward 56 (Llama: 8 heads, 4 of keys).
HALF_ENCODER = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 28}
HALF_LLAMA = {"hidden_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 28}
HALF_WHISPER = {"d_model": 20, "encoder_ffn_dim": 28, "decoder_ffn_dim": 24}
FOLLOWED: dict[tuple[str, ...], dict[str, int]] = {
    ("resnet", *EVERYTHING): {"embedding_size": 6, "hidden_sizes.0": 8, "hidden_sizes.1": 12},
    ("convnext", *EVERYTHING): {"hidden_sizes.0": 8, "hidden_sizes.1": 12},
    ("vit", "ffn"): {"intermediate_size": 28},
    ("vit", *EVERYTHING): HALF_ENCODER,
    ("deit", *EVERYTHING): HALF_ENCODER,
    ("bert", *EVERYTHING): HALF_ENCODER,
    ("roberta", *EVERYTHING): HALF_ENCODER,
    ("albert", *EVERYTHING): {**HALF_ENCODER, "embedding_size": 8},
    ("distilbert", *EVERYTHING): {"dim": 20, "n_heads": 2, "hidden_dim": 28},
    ("gpt2", *EVERYTHING): {"n_embd": 20, "n_head": 2, "n_inner": 28},
    ("llama", "heads"): {"num_attention_heads": 4, "num_key_value_heads": 2},
    ("llama", *EVERYTHING): HALF_LLAMA,
    ("qwen2", *EVERYTHING): HALF_LLAMA,
    ("t5", "heads"): {"num_heads": 2},
    ("t5", "head_dim"): {"d_kv": 3},
    ("t5", "ffn"): {"d_ff": 28},
    ("whisper", *EVERYTHING): {**HALF_WHISPER, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


QUICK = {("bert", *EVERYTHING), ("gpt2", *EVERYTHING), ("llama", "heads"), ("t5", "heads"), ("convnext", *EVERYTHING)}
CASES = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(case)) for case in FOLLOWED]


@pytest.mark.parametrize("case", CASES)
def test_a_uniform_model_goes_through_save_pretrained_and_back(case: tuple[str, ...], tmp_path: Path) -> None:
    compact, groups, (args, kwargs) = compacted(*case)
    assert follow_config(compact, groups, (args, kwargs)).changed == FOLLOWED[case]
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    with torch.no_grad():
        for left, right in zip(tensors(compact(*args, **kwargs)), tensors(loaded(*args, **kwargs)), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)
    for path, module in compact.named_modules():
        integers = {name: value for name, value in vars(module).items() if type(value) is int}
        assert integers == {name: vars(loaded.get_submodule(path))[name] for name in integers}


def test_the_model_inside_a_wrapper_is_followed_and_other_places_are_not_its_own() -> None:
    """A recipe's model is a OneOutput around the library's; its config stands for the part below `model`."""

    class Scaled(OneOutput):
        def forward(self, tokens: Tensor, attention: Tensor) -> Tensor:
            return super().forward(input_ids=tokens, attention_mask=attention)

    inner, (args, kwargs), _ = FAMILIES["bert"]()
    model = Scaled(inner, "logits")
    example = (kwargs["input_ids"], kwargs["attention_mask"])
    groups = find_channel_groups(capture(model, example), hidden=True)
    removal = {n: gone for n, gone in remove_share(groups, 0.5).items() if groups[n].kind in EVERYTHING}
    compact = shrink(masked_copy(model, groups, removal), groups, removal)
    assert follow_config(compact, groups, (example, {})).changed == HALF_ENCODER
    again = shrink(masked_copy(model, groups, removal), groups, removal)
    apply_config(again, HALF_ENCODER)
    for followed in (compact, again):
        assert followed.model.config.hidden_size == 20
        assert followed.model.bert.encoder.layer[0].attention.self.num_attention_heads == 2


REFUSED = {
    ("llama", "hidden"): "The hidden size (20) is not a multiple of the number of attention heads (8)",
    ("bert", "heads"): "dense.weight is 20, which is not the hidden_size of the other layers",
    ("mobilenet_v2", "channels"): "where a config of these widths makes it",
    ("llama", "head_dim"): "rotary_emb.inv_freq is not saved with the weights, and would be computed anew",
    ("t5", "hidden"): "a model of these widths computes something else",  # its logits are scaled by the root of d_model
}


@pytest.mark.parametrize("case", REFUSED, ids="-".join)
def test_what_no_config_says_is_told_and_left_as_it_was(case: tuple[str, ...]) -> None:
    compact, groups, example = compacted(*case)
    before = compact.config.to_dict()
    rewritten = follow_config(compact, groups, example)
    assert REFUSED[case] in rewritten.reason and not rewritten.changed
    assert compact.config.to_dict() == before


def test_layers_of_different_widths_have_no_config() -> None:
    model, example, _ = FAMILIES["llama"]()
    groups = find_channel_groups(capture(model, *example))
    removal = {"model.layers.0.mlp.gate_proj": remove_share(groups, 0.5)["model.layers.0.mlp.gate_proj"]}
    rewritten = follow_config(shrink(model, groups, removal), groups, example)
    assert "which is not the intermediate_size of the other layers" in rewritten.reason


def test_changed_keys_can_be_applied_again() -> None:
    compact, groups, example = compacted("t5", "heads")
    changed = follow_config(compact, groups, example).changed
    again, _, _ = compacted("t5", "heads")
    apply_config(again, changed)
    assert again.config.to_dict() == compact.config.to_dict()
    assert again.encoder.config.num_heads == again.decoder.block[1].layer[1].EncDecAttention.n_heads == 2


def test_a_model_without_a_config_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    groups = find_channel_groups(capture(model, (torch.randn(2, 4),)))
    assert follow_config(model, groups, ((torch.randn(2, 4),), {})).reason == "it is not built from a config"
