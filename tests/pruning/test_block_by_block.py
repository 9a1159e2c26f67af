"""Pruning block by block, against Wanda written out by hand, and what isn't a chain of blocks."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from pytorch_lightning import LightningModule
from pytorch_lightning import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from nnicompress.errors import ConfigError, InputErrors
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.models.outputs import OneOutput
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.result import PruningResult
from nnicompress.trace import trace
from tests.pruning.wanda_by_hand import wanda

VOCABULARY, LENGTH, BATCH, NUM_BATCHES = 40, 10, 4, 3


def make_llama(num_layers: int = 3, **more: Any) -> LlamaForCausalLM:
    """Grouped queries, RMSNorm, SwiGLU, a cache in training; norms and embeddings apart from their first values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        **more,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


def tokens(num_batches: int = NUM_BATCHES, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (num_batches * BATCH, length), generator=torch.Generator().manual_seed(1))


def rows(num_batches: int = NUM_BATCHES, length: int = LENGTH) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens(num_batches, length)]


def loader(seed: int = 0, data: list[dict[str, Tensor]] | None = None) -> DataLoader[Any]:
    return DataLoader(data or rows(), batch_size=BATCH)


def torch_evaluator(model: nn.Module, data: list[dict[str, Tensor]] | None = None) -> EvaluatorBase:
    return TorchEvaluator(
        TrainingLoop(functools.partial(loader, data=data), validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model(**batch).loss,
    )


class Language(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning_evaluator(model: nn.Module) -> EvaluatorBase:
    trainer = trace(LightningTrainer)(accelerator="cpu", devices=1, limit_val_batches=0)
    return LightningEvaluator(trainer, {"train": loader, "validation": loader})


def transformers_evaluator(model: nn.Module) -> EvaluatorBase:
    args = trace(TrainingArguments)(
        per_device_train_batch_size=BATCH, train_sampling_strategy="sequential", use_cpu=True, report_to="none"
    )
    return TransformersEvaluator(trace(Trainer)(args=args, train_dataset=rows(), eval_dataset=rows()))


# What the engine is given, and where the blocks are in it.
ENGINES: Mapping[str, tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module], EvaluatorBase], str]] = {
    "torch": (lambda model: model, torch_evaluator, ""),
    "lightning": (Language, lightning_evaluator, "model."),
    "transformers": (lambda model: model, transformers_evaluator, ""),
    "transformers, one output": (lambda model: OneOutput(model, "logits"), transformers_evaluator, "model."),
}
TARGET = {"op_types": ["Linear"], "exclude_op_names_re": [r".*lm_head"], "sparse_ratio": 0.5}
WITHIN_OUTPUT = {"granularity": "element", "allocation": {"within": "output"}}


def pruned(
    model: nn.Module, evaluator: EvaluatorBase, blocks: Any = "auto", target: Any = TARGET, **more: Any
) -> PruningResult:
    importance = {"name": "wanda", "training_steps": NUM_BATCHES, "blocks": blocks}
    settings = {**WITHIN_OUTPUT, **more}
    return Pruner([target], evaluator, importance=importance, **settings).compress(model)


def batches() -> list[Tensor]:
    return list(tokens().split(BATCH))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str = "") -> None:
    assert {f"{prefix}{name}" for name in expected} == set(found)
    for name, keep in expected.items():
        assert torch.equal(found[f"{prefix}{name}"], keep), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("named", [False, True])
def test_the_masks_are_those_of_wanda_by_hand(engine: str, named: bool) -> None:
    wrap, make_evaluator, prefix = ENGINES[engine]
    reference, model = make_llama(), wrap(make_llama())
    expected = wanda(reference, batches(), 0.5)
    found = pruned(model, make_evaluator(model), f"{prefix}model.layers" if named else "auto")
    assert_same(found.masks.keep, expected, prefix)
    assert all(keep.float().mean() == 0.5 for keep in expected.values())
    for name, parameter in reference.named_parameters():
        assert torch.equal(model.get_parameter(f"{prefix}{name}"), parameter), name


def test_two_of_four() -> None:
    model, reference = make_llama(), make_llama()
    found = pruned(
        model, torch_evaluator(model), target={**TARGET, "sparse_ratio": None}, granularity="2:4", allocation="uniform"
    )
    assert_same(found.masks.keep, wanda(reference, batches(), 0.5, of_four=True))


def test_it_differs_from_one_pass_only_behind_the_first_block() -> None:
    by_block, at_once = make_llama(), make_llama()
    one = pruned(by_block, torch_evaluator(by_block)).masks.keep
    other = pruned(at_once, torch_evaluator(at_once), blocks=None).masks.keep
    assert_same(other, wanda(make_llama(), batches(), 0.5, by_block=False))
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different and all(".layers.0." not in name for name in different)
    assert {name.split(".")[2] for name in different} == {"1", "2"}


def test_what_lies_in_no_block_comes_last_and_sees_the_pruned_blocks() -> None:
    """`lm_head` reads what the final norm gives behind the pruned blocks."""
    model, reference = make_llama(), make_llama()
    found = pruned(model, torch_evaluator(model), target={"op_types": ["Linear"], "sparse_ratio": 0.5}).masks.keep
    expected = wanda(reference, batches(), 0.5)
    with torch.no_grad():
        states = torch.cat([reference.model(batch).last_hidden_state.flatten(0, 1) for batch in batches()])
    metric = reference.lm_head.weight.abs().double() * states.double().norm(dim=0)
    keep = torch.zeros_like(metric, dtype=torch.bool).scatter_(1, metric.topk(8, dim=1).indices, True)
    assert_same(found, {**expected, "lm_head.weight": keep})


def test_steps_of_a_schedule_keep_what_was_removed() -> None:
    model = make_llama()
    schedule = {"name": "agp", "total_times": 2, "interval_steps": 2}
    result = pruned(model, torch_evaluator(model), schedule=schedule)
    for name, keep in result.masks.keep.items():
        assert keep.float().mean() == 0.5
        assert torch.equal(model.get_parameter(name) != 0, keep)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_and_checkpointing_of_a_training_change_nothing(dropout: float, checkpointing: bool) -> None:
    expected = wanda(make_llama(), batches(), 0.5)
    model = make_llama(attention_dropout=dropout)
    if checkpointing:
        model.activation_checkpointing_enable()
    before = torch.get_rng_state()
    assert_same(pruned(model, torch_evaluator(model)).masks.keep, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.layers.modules())


def test_a_block_is_run_in_the_precision_of_the_training() -> None:
    model = make_llama()
    seen: set[torch.dtype] = set()

    def step(batch: Any, model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch).loss

    evaluator = TorchEvaluator(
        TrainingLoop(loader, validate_every=0), trace(torch.optim.SGD)(model.parameters(), lr=0.1), step
    )
    hook = model.model.layers[2].mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    pruned(model, evaluator)
    hook.remove()
    assert seen == {torch.bfloat16}


class PlainBlock(nn.Module):
    """A linear layer behind a residual connection; it may write into its input, and it may return more."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.linear(x)
        x = x + y.relu()
        return x if shift is None else x + shift


class Blocks(nn.Module):
    """Plain blocks between an embedding and a head, called as `run` says."""

    def __init__(self, run: Callable[[Blocks, Tensor], Tensor], num_blocks: int = 3, blocks: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([PlainBlock() for _ in range(num_blocks)]) if blocks is None else blocks
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, self.embed(x)))


def plain_evaluator(model: nn.Module, num_batches: int = NUM_BATCHES) -> EvaluatorBase:
    torch.manual_seed(1)
    data = [(row, row.sum()) for row in torch.randn(num_batches * 5, 4)]
    return TorchEvaluator(
        TrainingLoop(lambda seed: DataLoader(data, batch_size=5), validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: (model(batch[0]).sum(1) - batch[1]).square().mean(),
    )


def one_by_one(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x)
    return x


def twice(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(block(x))
    return x


def all_twice(model: Blocks, x: Tensor) -> Tensor:
    return one_by_one(model, one_by_one(model, x))


def all_twice_with_something_between(model: Blocks, x: Tensor) -> Tensor:
    return one_by_one(model, one_by_one(model, x).tanh())


def backwards(model: Blocks, x: Tensor) -> Tensor:
    for block in reversed(model.blocks):
        x = block(x)
    return x


def but_the_last(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks[:-1]:
        x = block(x)
    return x


def checkpointed(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    return x


def with_something_between(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x).tanh()
    return x


def with_something_beside(model: Blocks, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x, x.mean(0))
    return x


def never(model: Blocks, x: Tensor) -> Tensor:
    return x


def with_an_open_file(model: Blocks, x: Tensor) -> Tensor:
    with open(__file__) as file:
        for block in model.blocks:
            x = block(x, shift=Sized(file))
    return x


class Sized:
    """Adds nothing, and holds something that can't be copied."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __radd__(self, other: Tensor) -> Tensor:
        return other


FAULTS = {
    twice: r"blocks\.0 is called where blocks\.1 is due",
    all_twice: r"blocks\.0 is given what the blocks computed before, in the same forward",
    all_twice_with_something_between: r"blocks\.0 is given what the blocks computed before, in the same forward",
    backwards: r"blocks\.2 is called where blocks\.0 is due",
    but_the_last: r"blocks\.0 is called where blocks\.2 is due",
    with_something_between: r"blocks\.1 is given a tensor that is computed between the blocks",
    with_something_beside: r"blocks\.1 is given a tensor that is computed between the blocks",
    never: "no block of it is called in a training step",
    with_an_open_file: r"blocks\.0 is given a Sized, which can't be kept \(cannot pickle",
}


@pytest.mark.parametrize("run", FAULTS, ids=lambda run: run.__name__)
def test_what_is_no_chain_is_named_and_where_nobody_named_it_pruned_at_once(run: Any) -> None:
    model = Blocks(run)
    target = {"op_names": ["blocks.0.linear"], "sparse_ratio": 0.5}
    with pytest.raises(ConfigError, match=f"blocks can't be pruned block by block: {FAULTS[run]}") as error:
        pruned(model, plain_evaluator(model), "blocks", target)
    assert error.value.key == "importance.blocks" and "\n" not in str(error.value)
    if run is not never:
        at_once = Blocks(run)
        found = pruned(model, plain_evaluator(model), "auto", target)
        expected = pruned(at_once, plain_evaluator(at_once), None, target)
        assert_same(found.masks.keep, expected.masks.keep)


def test_a_forward_that_runs_again_in_the_backward_pass_counts_once() -> None:
    target = {"op_names_re": [r"blocks.*linear"], "sparse_ratio": 0.5}
    plain, again = Blocks(one_by_one), Blocks(checkpointed)
    expected = pruned(plain, plain_evaluator(plain), "blocks", target)
    assert_same(pruned(again, plain_evaluator(again), "blocks", target).masks.keep, expected.masks.keep)


def masked_by_hand(model: Blocks, states: list[Tensor], run: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Half of each row of each block's weight, by what enters the block."""
    with torch.no_grad():
        for block in model.blocks:
            norms = torch.cat(states).double().norm(dim=0)
            metric = block.linear.weight.abs().double() * norms
            keep = torch.zeros_like(metric, dtype=torch.bool).scatter_(1, metric.topk(4, dim=1).indices, True)
            block.linear.weight.mul_(keep)
            states = [run(block, state) for state in states]


class InPlace(PlainBlock):
    """Writes into what it is given."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return x.add_(self.linear(x.clone()).relu())


class Remembers:
    """What a cache is: it keeps what it is shown, and gives all of it."""

    def __init__(self) -> None:
        self.shown: dict[int, list[Tensor]] = {}

    def update(self, number: int, x: Tensor) -> Tensor:
        self.shown.setdefault(number, []).append(x)
        return torch.stack(self.shown[number]).sum(0)


class WithCache(PlainBlock):
    """Adds up what it was shown since the forward began."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, cache: Remembers) -> Tensor:
        return x + cache.update(self.number, self.linear(x)).relu()


def test_a_block_that_writes_into_its_input_is_given_a_copy() -> None:
    blocks = nn.ModuleList([InPlace() for _ in range(3)])
    model = Blocks(lambda model, x: one_by_one(model, x * 1), blocks=blocks)
    reference = copy.deepcopy(model)
    pruned(model, plain_evaluator(model), "blocks", {"op_names_re": [r"blocks.*linear"], "sparse_ratio": 0.5})
    torch.manual_seed(1)
    with torch.no_grad():
        states = [reference.embed(x) for x in torch.randn(5 * NUM_BATCHES, 4).split(5)]
    masked_by_hand(reference, states, lambda block, state: state + block.linear(state).relu())
    for block, expected in zip(model.blocks, reference.blocks, strict=True):
        assert torch.equal(block.linear.weight, expected.linear.weight)


def test_a_cache_is_as_empty_as_it_was_at_the_first_block() -> None:
    def run(model: Blocks, x: Tensor) -> Tensor:
        cache = Remembers()
        for block in model.blocks:
            x = block(x, cache=cache)
        return x

    model = Blocks(run, blocks=nn.ModuleList([WithCache(number) for number in range(3)]))
    reference = copy.deepcopy(model)
    pruned(model, plain_evaluator(model), "blocks", {"op_names_re": [r"blocks.*linear"], "sparse_ratio": 0.5})
    torch.manual_seed(1)
    with torch.no_grad():
        states = [reference.embed(x) for x in torch.randn(5 * NUM_BATCHES, 4).split(5)]
    masked_by_hand(reference, states, lambda block, state: state + block.linear(state).relu())
    for block, expected in zip(model.blocks, reference.blocks, strict=True):
        assert torch.equal(block.linear.weight, expected.linear.weight)


WRONG_NAMES = {
    "model.layer": r"no module named 'model\.layer' in LlamaForCausalLM; did you mean 'model\.layers'",
    "model": r"model is LlamaModel, no sequence of blocks \(.*\); did you mean 'model\.layers'",
    "model.layers.0": r"model\.layers\.0 is LlamaDecoderLayer, no sequence .*; did you mean 'model\.layers'",
    "": r"the model is LlamaForCausalLM, no sequence of blocks .*; did you mean 'model\.layers'",
    "lm_head": r"lm_head is Linear, no sequence of blocks \(a ModuleList or a Sequential\)$",
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_name_that_is_no_sequence(name: str) -> None:
    model = make_llama(2)
    with pytest.raises(ConfigError, match=WRONG_NAMES[name]) as error:
        pruned(model, torch_evaluator(model), name)
    assert error.value.key == "importance.blocks"


@pytest.mark.parametrize(
    ("blocks", "target", "reason"),
    [
        (nn.ModuleList(), {"op_names": ["head"], "sparse_ratio": 0.5}, "blocks has no blocks: it is empty"),
        (
            nn.ModuleList([PlainBlock()] * 3),
            {"op_names": ["head"], "sparse_ratio": 0.5},
            "blocks holds the same module",
        ),
        (None, {"op_names": ["head"], "sparse_ratio": 0.5}, "no target lies in a block of blocks"),
    ],
    ids=["empty", "shared", "no target"],
)
def test_a_sequence_that_cannot_be_pruned_block_by_block(blocks: Any, target: Any, reason: str) -> None:
    model = Blocks(one_by_one, blocks=blocks)
    with pytest.raises(ConfigError, match=reason):
        pruned(model, plain_evaluator(model), "blocks", target)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"importance": {"name": "level", "blocks": "model.layers"}},
            "level takes no blocks, as it looks at no inputs",
        ),
        ({"importance": {"name": "wanda", "blocks": []}}, "names no sequence of blocks; auto finds them"),
        ({"importance": {"name": "wanda", "blocks": 3}}, "importance.blocks"),
        ({"importance": {"name": "wanda", "blocks": "auto", "training_steps": 0}}, "0 is below 1"),
        (
            {"allocation": {"name": "global"}},
            "importance.blocks prunes one block after the other, and allocation global",
        ),
        ({"target": {"macs": 0.5}, "granularity": "output_channel"}, "one block after the other, and target decides"),
    ],
)
def test_settings_that_contradict_blocks(settings: dict[str, Any], reason: str) -> None:
    given = {"importance": {"name": "wanda", "blocks": "auto"}, "granularity": "element", **settings}
    with pytest.raises(InputErrors, match=reason):
        Pruner([TARGET], None, **given)  # type: ignore[arg-type]


def test_auto_stands_beside_an_importance_that_looks_at_no_inputs() -> None:
    """So that a recipe's importance is exchanged for a control's by one override."""
    model = make_llama(2)
    found = Pruner([TARGET], torch_evaluator(model), importance={"name": "level", "blocks": "auto"}, **WITHIN_OUTPUT)
    for name, keep in found.compress(model).masks.keep.items():
        weight = make_llama(2).get_parameter(name).abs()
        assert torch.equal(keep, torch.zeros_like(keep).scatter_(1, weight.topk(weight.shape[1] // 2).indices, True))


def test_sequences_that_lie_in_each_other() -> None:
    model = Blocks(one_by_one, blocks=nn.ModuleList([nn.Sequential(PlainBlock(), PlainBlock()) for _ in range(2)]))
    with pytest.raises(ConfigError, match=r"blocks\.0 and blocks lie in each other; name one of them"):
        pruned(model, plain_evaluator(model), ["blocks", "blocks.0"], {"op_names": ["head"], "sparse_ratio": 0.5})


def peak(num_layers: int, num_batches: int) -> int:
    """The most bytes of tensors, beside those that were there before, that are alive while a block runs on its own."""
    model = make_llama(num_layers)
    evaluator = torch_evaluator(model, rows(num_batches))
    found: list[int] = []

    def count(*_: Any) -> None:
        alive = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if issubclass(type(tensor), Tensor)  # isinstance would ask objects for their __class__
        }
        found.append(sum(alive.values()))

    for block in model.model.layers:
        block.mlp.down_proj.register_forward_hook(count)
    importance = {"name": "wanda", "training_steps": num_batches, "blocks": "auto"}
    gc.freeze()  # what is there before isn't looked at again
    try:
        Pruner([TARGET], evaluator, importance=importance, **WITHIN_OUTPUT).compress(model)
    finally:
        gc.unfreeze()
    of_training = num_layers * num_batches
    assert len(found) == 3 * of_training  # the training, then each block twice
    return max(found[of_training:])


def test_the_activations_of_one_block_are_in_memory_however_many_there_are() -> None:
    state = BATCH * LENGTH * 16 * 4
    few, many, more = peak(2, 4), peak(6, 4), peak(2, 8)
    assert many - few < state
    assert 4 * state <= more - few < 2 * 4 * state  # with each batch its state comes, and its mask and positions
