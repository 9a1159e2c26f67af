"""Predicting tokens: the next one (causal), or hidden ones (masked)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnicompress.data.masking import MaskedTokens
from nnicompress.data.roles import check_fact, require
from nnicompress.data.sources import Source
from nnicompress.data.tables import Table
from nnicompress.data.text import TextData
from nnicompress.data.tokens import IGNORED, Inputs, TokensInMemory


class LanguageModelling(TextData):
    """Documents of the column `text`, tokenised, joined with an end token after each, and cut into blocks.

    `num_classes` is the size of the vocabulary. The last block is padded. All tokens of a role are held in memory.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: str,
        vocab_size: int,
        text: str = "text",
        block_size: int = 128,
        batch_size: int = 16,
        drop_last: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(source, batch_size=batch_size, length=block_size, drop_last=drop_last, stratify=None)
        self.text = text
        texts = {role: table.texts(text, "text") for role, table in self.tables.items()}
        self.use_tokenizer(tokenizer, vocab_size, texts["train"], "block_size")
        self.num_classes = self.vocab_size
        if num_classes is not None:
            check_fact("num_classes", num_classes, self.vocab_size, "the size of the vocabulary is")

    def columns(self) -> tuple[str | None, ...]:
        """The text alone."""
        return (self.text,)

    def tokens(self, table: Table, role: str, room: int) -> Tensor:
        """All tokens of a role's documents, `[total]`; at least `room`, what a block holds, in the train role."""
        documents = self.tokenizer(table.texts(self.text, "text"), add_special_tokens=False, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.tokenizer.sep_token_id
        stream = torch.tensor(join(documents, end))
        require(
            role != "train" or len(stream) >= room,
            "block_size",
            f"{self.length} is too long: the training texts have {len(stream)} tokens in all; take a smaller one",
        )
        return stream


class CausalLM(LanguageModelling):
    """The next token, for models such as GPT-2 and Llama.

    Inputs (`input_ids`, `attention_mask`) and targets are `[N, block_size]`. Targets are the input tokens themselves
    and -100 at padding: the shift by one is the loss's, as models of transformers do it with `labels`.
    """

    def encoded(self, table: Table, role: str) -> TokensInMemory:
        """Consecutive blocks of the role's tokens."""
        stream = self.tokens(table, role, self.length)
        if len(stream) % self.length == 1:
            stream = stream[:-1]  # a block of one token has nothing to predict, and so no loss
        blocks, real = cut(stream, self.length, self.tokenizer.pad_token_id)
        targets = blocks.masked_fill(~real, IGNORED)
        return TokensInMemory({"input_ids": blocks, "attention_mask": real.long()}, targets)


class MaskedLM(LanguageModelling):
    """Hidden tokens, for models such as BERT (`masking` says how they are hidden).

    Inputs and targets are `[N, block_size]`; a block is `[CLS] tokens [SEP]`, and targets are the hidden tokens, -100
    elsewhere. Training hides other tokens in each epoch; validation and test always the same ones.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: str,
        vocab_size: int,
        text: str = "text",
        block_size: int = 128,
        batch_size: int = 16,
        drop_last: bool = False,
        num_classes: int | None = None,
        mask_fraction: float = 0.15,
    ) -> None:
        require(0 < mask_fraction < 1, "mask_fraction", f"{mask_fraction} is not between 0 and 1")
        super().__init__(source, tokenizer, vocab_size, text, block_size, batch_size, drop_last, num_classes)
        self.mask_fraction = mask_fraction
        require(
            self.tokenizer.mask_token_id is not None,
            "tokenizer",
            f"{tokenizer!r} has no mask token; take one of a masked language model, 'bytes' or 'bpe'",
        )
        self.preprocessing = {**self.preprocessing, "mask_fraction": mask_fraction}

    def encoded(self, table: Table, role: str) -> MaskedTokens:
        """Blocks of the role's tokens between the special ones."""
        tokenizer = self.tokenizer
        first, last = _known(tokenizer.cls_token_id), _known(tokenizer.sep_token_id)
        room = self.length - len(first) - len(last)
        text, real = cut(self.tokens(table, role, room), room, tokenizer.pad_token_id)
        # Each row is put together by hand: the end token follows the text, before the padding.
        blocks = torch.full((len(text), self.length), tokenizer.pad_token_id)
        attended = torch.zeros_like(blocks)
        for block, attention, row, there in zip(blocks, attended, text, real, strict=True):
            whole = torch.tensor([*first, *row[there].tolist(), *last])
            block[: len(whole)], attention[: len(whole)] = whole, 1
        maskable = ~torch.isin(blocks, torch.tensor(tokenizer.all_special_ids))
        some = maskable.any(1)  # the last block may hold an end token alone
        inputs: Inputs = {"input_ids": blocks[some], "attention_mask": attended[some]}
        if "token_type_ids" in tokenizer.model_input_names:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        return MaskedTokens(
            inputs,
            maskable[some],
            fraction=self.mask_fraction,
            mask_token=tokenizer.mask_token_id,
            vocab_size=self.vocab_size,
            fixed=role != "train",
        )


def join(documents: Sequence[Sequence[int]], end: int | None) -> list[int]:
    """The documents' tokens one after another, with `end` after each; None: nothing between them."""
    ending = _known(end)
    return [token for document in documents for token in (*document, *ending)]


def cut(stream: Tensor, size: int, padding: int) -> tuple[Tensor, Tensor]:
    """`[total]` as consecutive blocks `[N, size]`, the last one padded; and which of their tokens are real (bool)."""
    missing = -len(stream) % size
    padded = torch.cat([stream, stream.new_full((missing,), padding)])
    real = torch.arange(len(padded)) < len(stream)
    return padded.view(-1, size), real.view(-1, size)


def _known(token: int | None) -> list[int]:
    return [] if token is None else [token]
