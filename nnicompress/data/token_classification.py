"""Classifying the words of a text: named entities, parts of speech."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnicompress.data.labels import check_num_classes, class_number, class_order, label_name
from nnicompress.data.roles import require
from nnicompress.data.sources import Source
from nnicompress.data.tables import Table
from nnicompress.data.text import TextData
from nnicompress.data.tokenization import separate_words
from nnicompress.data.tokens import IGNORED, TokensInMemory, encode, inputs_of


class TokenClassification(TextData):
    """One class a word, from the columns `tokens` (the words) and `tags`.

    Both columns hold lists (JSON), or texts that are divided at white space (CSV). Inputs and targets are
    `[N, max_length]`: the first token of a word has the word's class, all others have -100, which losses leave out.
    The words of a row that don't fit are cut off.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: str,
        num_classes: int,
        tokens: str = "tokens",
        tags: str = "tags",
        class_names: list[str] | None = None,
        vocab_size: int | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        drop_last: bool = False,
    ) -> None:
        super().__init__(source, batch_size=batch_size, length=max_length, drop_last=drop_last, stratify=None)
        self.tokens_column, self.tags_column = tokens, tags
        words, names = zip(*(self._words_and_names(self.tables["train"])), strict=True)
        given = class_names if class_names is not None else self.tables["train"].categories.get(tags)
        self.class_names = class_order((name for row in names for name in row), given)
        check_num_classes(num_classes, self.class_names, given is not None)
        self.num_classes = num_classes
        for role in ("train", "validation", "test"):
            self._words_and_numbers(self.tables[role])
        self.use_tokenizer(tokenizer, vocab_size, (" ".join(row) for row in words), "max_length")
        separate_words(self.tokenizer)

    def columns(self) -> tuple[str | None, ...]:
        """Words and tags."""
        return self.tokens_column, self.tags_column

    def encoded(self, table: Table, role: str) -> TokensInMemory:
        """A row of tokens for each row of the table."""
        words, numbers = zip(*self._words_and_numbers(table), strict=True)
        encoding = encode(self.tokenizer, self.length, list(words), is_split_into_words=True)
        targets = [align(encoding.word_ids(row), tags) for row, tags in enumerate(numbers)]
        return TokensInMemory(inputs_of(self.tokenizer, encoding), torch.stack(targets))

    def _words_and_names(self, table: Table) -> list[tuple[list[str], list[str]]]:
        rows = []
        columns = table.column(self.tokens_column, "tokens"), table.column(self.tags_column, "tags")
        for words, tags, place in zip(*columns, table.places, strict=True):
            divided = _divided(words, place, "tokens"), _divided(tags, place, "tags")
            require(
                len(divided[0]) == len(divided[1]),
                "tags",
                f"{place}: {len(divided[0])} words and {len(divided[1])} tags",
            )
            require(all(isinstance(word, str) for word in divided[0]), "tokens", f"{place}: a word is not a text")
            rows.append((divided[0], [label_name(tag, place, "tags") for tag in divided[1]]))
        return rows

    def _words_and_numbers(self, table: Table) -> list[tuple[list[str], list[int]]]:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return [
            (words, [class_number(name, numbers, place, "tags") for name in names])
            for (words, names), place in zip(self._words_and_names(table), table.places, strict=True)
        ]


def align(word_ids: list[int | None], tags: list[int]) -> Tensor:
    """The class of each token `[T]`: that of the word it begins, else `IGNORED`.

    `word_ids` tells each token's word, None for special tokens and padding.
    """
    before = [None, *word_ids[:-1]]
    return torch.tensor(
        [IGNORED if word is None or word == last else tags[word] for word, last in zip(word_ids, before, strict=True)]
    )


def _divided(value: Any, place: str, key: str) -> list[Any]:
    divided = value.split() if isinstance(value, str) else value
    require(isinstance(divided, list), key, f"{place}: {type(value).__name__} where a list or a text is needed")
    require(len(divided) > 0, key, f"{place}: no word")
    return list(divided)
