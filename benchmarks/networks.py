"""The networks that benchmarks measure at their real sizes, with random weights; it prints what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nnicompress.graph import count_macs
from nnicompress.models.resnet import resnet18, resnet50


class Logits(nn.Module):
    """A classifier of transformers that takes one tensor and returns one."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model, self._argument = model, argument

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the input tensor, the logits."""
        logits: torch.Tensor = self.model(**{self._argument: x}).logits
        return logits


def vit_b() -> nn.Module:
    """ViT-B/16, 1,000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    return Logits(ViTForImageClassification(ViTConfig(num_labels=1000)), "pixel_values")


def bert_base() -> nn.Module:
    """BERT-base with a classifier of 2 classes."""
    from transformers import BertConfig, BertForSequenceClassification

    return Logits(BertForSequenceClassification(BertConfig()), "input_ids")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit_b": vit_b,
    "bert_base": bert_base,
}


def build(name: str) -> nn.Module:
    """A network in eval mode, its weights seeded."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def batch(name: str, size: int) -> torch.Tensor:
    """Images of 224x224, or texts of 128 tokens."""
    return torch.randint(0, 30522, (size, 128)) if name == "bert_base" else torch.randn(size, 3, 224, 224)


def attention_of(model: nn.Module) -> dict[nn.Module, int]:
    """The projections of queries, keys and values, each with its number of heads."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads: Any = getattr(module, "num_attention_heads", None)
        if heads is not None:
            names = ("query", "key", "value", "q_proj", "k_proj", "v_proj")
            found |= {layer: heads for name, layer in module.named_children() if name in names}
    return found


def main() -> None:
    """Print the parameters and multiply-accumulates of each."""
    for name in NETWORKS:
        model = build(name)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:10} {parameters:12,} parameters {count_macs(model, (batch(name, 1),)).total:15,} MACs")


if __name__ == "__main__":
    main()
