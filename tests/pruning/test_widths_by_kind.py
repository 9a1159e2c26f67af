"""Granularities that name what a width is for: heads, dimensions inside them, feed-forward and hidden widths."""

from contextlib import contextmanager

import pytest

from nnicompress.errors import ConfigError, InputErrors, UserError
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.pruning.storage import load_pruning, save_pruning
from nnicompress.shrink import prove, shrink
from tests.graph.families import FAMILIES

LINEAR = {"op_types": ["Linear"], "sparse_ratio": 0.5}


class Example:
    """An evaluator of which only inputs are asked."""

    capabilities = frozenset({"example_inputs"})

    def __init__(self, example):
        self.example = example

    @contextmanager
    def bound(self, model):
        self.model = model
        yield model

    def example_inputs(self, batch_size):
        return self.example

    def require(self, capability, *, by, why):
        assert capability in self.capabilities


def pruned(family, targets, **others):
    model, example, other = FAMILIES[family]()
    result = Pruner(targets, Example(example), importance="l1", allocation={"round_to": 1}, **others).compress(model)
    compact = shrink(model, result.groups, result.removal)
    prove(model, compact, result.groups, result.removal, [example, other])
    return result, compact


# BERT: width 40, 4 heads of 10, intermediate 56. GPT-2 the same. Llama: 8 heads and 4 of keys of 6; 3 rotary pairs.
KINDS = [
    ("bert", "heads", {"encoder.layer.0.attention.self.query": (20, 40), "encoder.layer.0.output.dense": (40, 56)}),
    ("bert", "head_dim", {"encoder.layer.1.attention.self.value": (20, 40), "pooler.dense": (40, 40)}),
    ("bert", "ffn", {"encoder.layer.0.intermediate.dense": (28, 40), "encoder.layer.0.attention.self.key": (40, 40)}),
    ("bert", "hidden", {"encoder.layer.0.intermediate.dense": (56, 20), "encoder.layer.0.output.dense": (20, 56)}),
    ("llama", "heads", {"layers.0.self_attn.q_proj": (24, 40), "layers.0.self_attn.k_proj": (12, 40)}),
    ("llama", "hidden", {"layers.0.self_attn.q_proj": (48, 20), "layers.1.mlp.down_proj": (20, 56)}),
]


@pytest.mark.parametrize(("family", "kind", "shapes"), KINDS, ids=[f"{family}-{kind}" for family, kind, _ in KINDS])
def test_only_widths_of_that_kind_are_pruned(family, kind, shapes, tmp_path) -> None:
    result, compact = pruned(family, [LINEAR], granularity=kind)
    body = compact.bert if family == "bert" else compact.model
    assert {result.groups[name].kind for name in result.removal} == {kind}
    for name, shape in shapes.items():
        assert tuple(body.get_submodule(name).weight.shape) == shape
    save_pruning(result, tmp_path)
    loaded = load_pruning(tmp_path)
    assert [n.module for n in loaded.masks.norms] == [n.module for n in result.masks.norms]
    assert bool(loaded.masks.norms) == (kind == "hidden")
    again = shrink(FAMILIES[family]()[0], loaded.groups, loaded.removal)
    assert [p.shape for p in again.parameters()] == [p.shape for p in compact.parameters()]


def test_kinds_with_ratios_of_their_own() -> None:
    targets = [{**LINEAR, "granularity": "heads"}, {**LINEAR, "granularity": "ffn", "sparse_ratio": 0.25}]
    _, compact = pruned("bert", targets)
    assert compact.bert.encoder.layer[0].attention.self.query.out_features == 20
    assert compact.bert.encoder.layer[0].intermediate.dense.out_features == 42


def test_what_a_kind_loses_is_counted_in_its_groups() -> None:
    """BERT of tests/graph/families.py: 2 layers of 4 heads, and of 56 feed-forward channels."""
    targets = [{**LINEAR, "granularity": "heads"}, {**LINEAR, "granularity": "ffn", "sparse_ratio": 0.25}]
    result, _ = pruned("bert", targets)
    rows = {row.name: (row.unit, row.size, row.removed) for row in result.rows}
    assert rows["bert.encoder.layer.1.attention.self.query"] == ("heads", 4, 2)
    assert rows["bert.encoder.layer.0.intermediate.dense"] == ("feed-forward channels", 56, 14)
    totals = {unit: (total.size, total.asked, total.removed) for unit, total in result.totals.items()}
    feed_forward = sum(size for unit, size, _ in rows.values() if unit == "feed-forward channels")
    assert totals == {"heads": (8, 4, 4), "feed-forward channels": (feed_forward, feed_forward / 4, feed_forward / 4)}
    assert result.summary == (
        "pruned 50.0% of the selected heads (asked: 50.0%) and 25.0% of the selected feed-forward channels "
        f"(asked: 25.0%), in {len(rows)} of {len(rows)} places"
    )


def test_hidden_of_a_model_that_returns_hidden_states_needs_its_outputs_named() -> None:
    with pytest.raises(ConfigError, match="the selected modules produce no hidden; they produce ffn, heads"):
        pruned("t5", [LINEAR], granularity="hidden")
    _, compact = pruned("t5", [LINEAR], granularity="hidden", outputs="logits")
    assert compact.shared.weight.shape == (60, 20) and compact.lm_head.weight is compact.shared.weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "head"}, "no granularity named 'head'; did you mean 'heads'"),
        ({"granularity": "head_dims"}, "did you mean 'head_dim'"),
        ({"granularity": "hiden"}, "did you mean 'hidden'"),
    ],
)
def test_wrong_names_are_named(settings, message) -> None:
    with pytest.raises(InputErrors, match=message):
        PrunerSettings.from_targets([LINEAR], **settings)


def test_heads_and_dimensions_inside_them_are_not_pruned_at_once() -> None:
    targets = [{**LINEAR, "granularity": "heads"}, {**LINEAR, "granularity": "head_dim"}]
    with pytest.raises(InputErrors, match="heads and head_dim can't be pruned at once"):
        PrunerSettings.from_targets(targets)


def test_an_output_that_the_model_does_not_return_is_named() -> None:
    with pytest.raises(UserError, match="BertForSequenceClassification returns no 'logit'; did you mean 'logits'"):
        pruned("bert", [LINEAR], outputs="logit")
