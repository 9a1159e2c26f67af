"""Wanda written out for a Llama, as the paper has it: norms of a block's inputs, zeros, the pruned block's outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


@torch.no_grad()
def wanda(
    model: LlamaForCausalLM, batches: list[Tensor], ratio: float, *, of_four: bool = False, by_block: bool = True
) -> dict[str, Tensor]:
    """Which weights of the blocks' linear layers stay, by name; the model's are zeroed. `batches` are token numbers.

    Without `by_block` every block sees what the unpruned ones before it give.
    """
    inner, keep = model.model, {}
    length = batches[0].shape[1]
    positions = torch.arange(length)[None]
    mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
    states = [inner.embed_tokens(tokens) for tokens in batches]
    for number, block in enumerate(inner.layers):
        linear = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        squares: dict[str, Tensor] = {name: torch.zeros(module.in_features).double() for name, module in linear.items()}

        def run(state: Tensor, block: nn.Module = block) -> Tensor:
            return block(state, attention_mask=mask, position_embeddings=inner.rotary_emb(state, positions))

        def add(name: str, squares: dict[str, Tensor] = squares):
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                squares[name] += args[0].flatten(0, 1).double().square().sum(0)

            return hook

        handles = [module.register_forward_pre_hook(add(name)) for name, module in linear.items()]
        unpruned = [run(state) for state in states]
        for handle in handles:
            handle.remove()
        for name, module in linear.items():
            metric = module.weight.abs().double() * squares[name].sqrt()
            kept = torch.zeros_like(module.weight, dtype=torch.bool)
            pools = metric.view(-1, 4) if of_four else metric
            most = 2 if of_four else pools.shape[1] - int(ratio * pools.shape[1] + 0.5)
            kept.view_as(pools).scatter_(1, pools.topk(most, dim=1).indices, True)
            module.weight.mul_(kept)
            keep[f"model.layers.{number}.{name}.weight"] = kept
        states = [run(state) for state in states] if by_block else unpruned
    return keep
