"""Wanda at once and block by block: processor time, and the bytes of tensors that are alive beside the model's.

Llamas of width 128 and 2, 4 and 8 blocks, 8 batches of 8 x 64 tokens, one thread. Bytes are those of the tensors of
Python that are alive whenever a block's last layer has run; what autograd holds of a training step is not among them.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import nnicompress
from nnicompress.evaluators.loop import TrainingLoop

NUM_BATCHES, BATCH, LENGTH, WIDTH, VOCABULARY = 8, 8, 64, 128, 256


def llama(num_blocks: int) -> LlamaForCausalLM:
    """Grouped queries: two heads for each head of keys."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def alive() -> int:
    """Bytes of all tensors that came since `gc.freeze()`."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), Tensor)
    }
    return sum(found.values())


def measured(num_blocks: int, blocks: str | None) -> tuple[float, int]:
    """Seconds of a pruning, and the most bytes alive in the second one."""
    seconds = pruned(num_blocks, blocks, lambda *_: None)
    peak = [0]

    def look(*_: Any) -> None:
        peak[0] = max(peak[0], alive())

    pruned(num_blocks, blocks, look)
    return seconds, peak[0]


def pruned(num_blocks: int, blocks: str | None, hook: Any) -> float:
    """Seconds of processor time that a pruning takes; `hook` is called behind each block's last layer."""
    model = llama(num_blocks)
    rows = torch.randint(VOCABULARY, (NUM_BATCHES * BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    evaluator = nnicompress.TorchEvaluator(
        TrainingLoop(lambda seed: DataLoader(list(rows), batch_size=BATCH), validate_every=0),
        nnicompress.trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model(batch, labels=batch).loss,
    )
    for block in model.model.layers:
        block.mlp.down_proj.register_forward_hook(hook)
    pruner = nnicompress.Pruner(
        [{"op_types": ["Linear"], "exclude_op_names": ["lm_head"], "sparse_ratio": 0.5}],
        evaluator,
        importance={"name": "wanda", "training_steps": NUM_BATCHES, "blocks": blocks},
        granularity="element",
        allocation={"within": "output"},
    )
    gc.collect()
    gc.freeze()
    try:
        started = time.process_time()
        pruner.compress(model)
        return time.process_time() - started
    finally:
        gc.unfreeze()


def main() -> None:
    """Print a row for each number of blocks."""
    torch.set_num_threads(1)
    states = NUM_BATCHES * BATCH * LENGTH * WIDTH * 4
    print(f"what enters a block, of all batches: {states / 1e6:.1f} MB")
    print("blocks   at once            block by block")
    for num_blocks in (2, 4, 8):
        found = [measured(num_blocks, blocks) for blocks in (None, "auto")]
        print(f"{num_blocks:6}   " + "   ".join(f"{s:6.1f} s {b / 1e6:6.1f} MB" for s, b in found), flush=True)


if __name__ == "__main__":
    main()
