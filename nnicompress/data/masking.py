"""Masked language modelling (Devlin et al. 2019): which tokens are hidden, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnicompress.data.roles import Key, unpack_keys
from nnicompress.data.tokens import IGNORED, Inputs, TokenBatch

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and any token of the vocabulary; the rest stay."""


class MaskedTokens(Dataset[TokenBatch]):
    """Rows of tokens of which some are hidden; the targets are the hidden tokens, -100 elsewhere.

    A training row's draw decides what is hidden, so each epoch hides others. With `fixed`, the row's own number does.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        maskable: Tensor,
        *,
        fraction: float,
        mask_token: int,
        vocab_size: int,
        fixed: bool,
    ) -> None:
        self.inputs, self.maskable, self.fixed = dict(inputs), maskable, fixed
        self.fraction, self.mask_token, self.vocab_size = fraction, mask_token, vocab_size

    def __len__(self) -> int:
        return len(self.maskable)

    def __getitems__(self, keys: list[Key]) -> TokenBatch:
        """The batch of these keys; DataLoader prefers this method to `__getitem__`."""
        indices, draws = unpack_keys(keys, augment=not self.fixed)
        picked = torch.tensor(indices)
        inputs: Inputs = {name: tensor[picked] for name, tensor in self.inputs.items()}
        rows = zip(inputs["input_ids"], self.maskable[picked], indices if draws is None else draws, strict=True)
        masked, targets = zip(*(self._hide(*row) for row in rows), strict=True)
        inputs["input_ids"] = torch.stack(masked)
        return inputs, torch.stack(targets)

    def __getitem__(self, key: Key) -> TokenBatch:
        inputs, targets = self.__getitems__([key])
        return {name: tensor[0] for name, tensor in inputs.items()}, targets[0]

    def _hide(self, tokens: Tensor, maskable: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        return hide(
            tokens, maskable, draw, fraction=self.fraction, mask_token=self.mask_token, vocab_size=self.vocab_size
        )


def hide(
    tokens: Tensor, maskable: Tensor, draw: int, *, fraction: float, mask_token: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """One row's tokens and targets, both `[T]`, a pure function of the draw.

    As in the original code, `fraction` of the maskable tokens is chosen, rounded, but at least one: a row without any
    target would have no loss.
    """
    generator = torch.Generator().manual_seed(draw)
    candidates = maskable.nonzero()[:, 0]
    count = max(1, round(fraction * len(candidates)))
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    targets = torch.full_like(tokens, IGNORED)
    targets[chosen] = tokens[chosen]
    chance = torch.rand(len(chosen), generator=generator)
    others = torch.randint(vocab_size, (len(chosen),), generator=generator)
    replaced = torch.where(chance < MASKED + RANDOM, others, tokens[chosen])
    hidden = tokens.clone()
    hidden[chosen] = torch.where(chance < MASKED, mask_token, replaced)
    return hidden, targets
