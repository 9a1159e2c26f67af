"""A multi-layer perceptron on flattened images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them: `sizes[0]` inputs, `sizes[-1]` logits.

    Input `[N, ...]` is flattened to `[N, sizes[0]]`; output is `[N, sizes[-1]]`.
    """

    def __init__(self, sizes: Sequence[int], *, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs an input and an output size, got {list(sizes)}")
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(nn.Linear(wide_in, wide_out, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(wide_out))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(sizes[-2], sizes[-1]))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, sizes[-1]]` of inputs with `sizes[0]` numbers each."""
        logits: Tensor = self.layers(images.flatten(1))
        return logits


def mlp(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    hidden: Sequence[int] = (256, 128),
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> MLP:
    """An MLP for images `[N, in_channels, image_size, image_size]`, with one hidden layer per entry of `hidden`."""
    sizes = (in_channels * image_size * image_size, *hidden, num_classes)
    return MLP(sizes, batch_norm=batch_norm, dropout=dropout)
