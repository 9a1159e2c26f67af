"""A dataset of token numbers held in memory, and tokenising texts to one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnicompress.data.roles import Key, require, unpack_keys
from nnicompress.data.tokenization import Tokenizer

IGNORED = -100
"""The target of a position that the loss leaves out, as `nn.CrossEntropyLoss` has it."""

Inputs = dict[str, Tensor]
"""`input_ids`, `attention_mask` and, where the tokenizer gives them, `token_type_ids`: int64, `[N, T]`."""

TokenBatch = tuple[Inputs, Tensor]
"""Inputs, and targets `[N]` (a class a text) or `[N, T]` (one a token, `IGNORED` where there is none), int64."""


class TokensInMemory(Dataset[TokenBatch]):
    """Rows of token numbers with their targets; a batch is one indexing operation."""

    def __init__(self, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        assert all(len(tensor) == len(targets) for tensor in inputs.values())
        self.inputs, self.targets = dict(inputs), targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: list[Key]) -> TokenBatch:
        """The batch of these keys; DataLoader prefers this method to `__getitem__`."""
        picked = torch.tensor(unpack_keys(keys, augment=False)[0])
        return {name: tensor[picked] for name, tensor in self.inputs.items()}, self.targets[picked]

    def __getitem__(self, key: Key) -> TokenBatch:
        inputs, targets = self.__getitems__([key])
        return {name: tensor[0] for name, tensor in inputs.items()}, targets[0]


def check_length(tokenizer: Tokenizer, length: int, key: str) -> None:
    """Raise a ConfigError unless `length` tokens hold text and the tokenizer's model takes them.

    `key` is the setting that says the length.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    require(length > special, key, f"{length} tokens leave no room for text beside the special ones (up to {special})")
    longest = tokenizer.model_max_length  # a huge number where the tokenizer doesn't know
    require(length <= longest, key, f"{length} tokens, and the tokenizer's model takes at most {longest}")


def encode(tokenizer: Tokenizer, length: int, *texts: Any, **settings: Any) -> Any:
    """Texts (and their pairs) tokenised, cut and padded to `length`: a BatchEncoding of transformers."""
    return tokenizer(*texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt", **settings)


def inputs_of(tokenizer: Tokenizer, encoded: Any) -> Inputs:
    """What the model is given of an encoding: a tensor `[N, T]` a name."""
    return {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
