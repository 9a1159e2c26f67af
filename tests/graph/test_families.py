"""Every family of transformers: heads, dimensions inside them, feed-forward and hidden widths, removed and proven."""

from __future__ import annotations

import pytest
import torch

from nnicompress.errors import ProofError
from nnicompress.shrink import prove, shrink
from tests.graph.families import FAMILIES
from tests.graph.trial import groups_of, trial
from tests.shrink.removals import masked_copy, remove_share

# From the architectures: blocks x (self-attention, cross-attention), feed-forward layers and residual streams.
# Poolers are linear pairs, too. RoBERTa's last dense layer feeds the tied embeddings: its width is the hidden one.
WIDTHS = {
    "vit": {"heads": 2, "ffn": 2, "hidden": 1},
    "deit": {"heads": 2, "ffn": 2, "hidden": 1},
    "swin": {"heads": 4, "ffn": 4, "hidden": 2},
    "segformer": {"heads": 3, "hidden": 3, "channels": 3 + 3 + 1},
    "bert": {"heads": 2, "ffn": 2 + 1, "hidden": 1},
    "distilbert": {"heads": 2, "ffn": 2 + 1, "hidden": 1},
    "roberta": {"heads": 2, "ffn": 2, "hidden": 1},
    "albert": {"heads": 1, "ffn": 1 + 1, "hidden": 2},
    "gpt2": {"heads": 2, "ffn": 2, "hidden": 1},
    "llama": {"heads": 2, "ffn": 2, "hidden": 1},
    "qwen2": {"heads": 2, "ffn": 2, "hidden": 1},
    "whisper": {"heads": 2 + 4, "ffn": 2 + 2, "hidden": 2, "channels": 1},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_width_is_removed_and_proven(name: str) -> None:
    result = trial(name, 0.5)
    assert result.after == result.expected < result.before
    assert result.fraction > 0.9
    assert result.kinds == WIDTHS.get(name, result.kinds)


@pytest.mark.slow
@pytest.mark.parametrize(("inside_heads", "hidden"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("ratio", [0.5, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_widths_and_shares(name: str, ratio: float, inside_heads: bool, hidden: bool) -> None:
    result = trial(name, ratio, inside_heads, hidden)
    assert result.after == result.expected < result.before


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_share_that_no_head_count_divides(name: str) -> None:
    result = trial(name, 0.3)
    assert result.after == result.expected < result.before


def swaps(name: str, most: int | None) -> None:
    """Two kept indices changed in one slot, slot by slot (or in at most so many of them): each fails the proof."""
    model, groups, batches = groups_of(name, inside_heads=False, hidden=True)
    removal = remove_share(groups, 0.3)
    masked = masked_copy(model, groups, removal)
    compact = shrink(masked, groups, removal)
    tensors = dict([*compact.named_parameters(), *compact.named_buffers()])
    slots = [slot for width in groups.widths for slot in width.slots if tensors[slot.tensor].shape[slot.dim] > 1]
    step = 1 if most is None else -(-len(slots) // most)
    for slot in slots[::step]:
        tensor = tensors[slot.tensor]
        original = tensor.data
        order = torch.arange(tensor.shape[slot.dim])
        order[[0, -1]] = order[[-1, 0]]
        tensor.data = original.index_select(slot.dim, order)
        with pytest.raises(ProofError):
            prove(masked, compact, groups, removal, batches[:1])
        tensor.data = original
    prove(masked, compact, groups, removal, batches[:1])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_swapping_two_kept_indices_fails_the_proof(name: str) -> None:
    swaps(name, most=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_swapping_two_kept_indices_in_any_family_fails_the_proof(name: str) -> None:
    swaps(name, most=12)
