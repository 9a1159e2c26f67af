"""Classifying texts, or pairs of texts."""

from __future__ import annotations

import torch

from nnicompress.data.labels import check_num_classes, class_number, class_order, label_name
from nnicompress.data.roles import require
from nnicompress.data.sources import Source
from nnicompress.data.tables import Table
from nnicompress.data.text import TextData
from nnicompress.data.tokens import TokensInMemory, encode, inputs_of


class SequenceClassification(TextData):
    """One class a text, from the columns `text`, optionally `text_pair`, and `label`.

    Inputs are a mapping of `[N, max_length]`: `input_ids`, `attention_mask`, `token_type_ids` where the tokenizer gives
    them; targets `[N]`. Longer texts are cut: of a pair, the longer one first. `class_names` gives the order of the
    classes; without it, they are those of the source, or the labels of the training rows in order.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: str,
        num_classes: int,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        class_names: list[str] | None = None,
        vocab_size: int | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        drop_last: bool = False,
    ) -> None:
        require(text_pair != text, "text_pair", f"{text!r} is the column of text already")
        super().__init__(source, batch_size=batch_size, length=max_length, drop_last=drop_last, stratify=label)
        self.text, self.text_pair, self.label = text, text_pair, label
        train = self.tables["train"]
        given = class_names if class_names is not None else train.categories.get(label)
        self.class_names = class_order(self._labels(train), given)
        check_num_classes(num_classes, self.class_names, given is not None)
        self.num_classes = num_classes
        self.targets = {role: self._targets(table) for role, table in self.tables.items()}
        for table in self.tables.values():
            self._texts(table)
        self.use_tokenizer(tokenizer, vocab_size, (t for column in self._texts(train) for t in column), "max_length")

    def columns(self) -> tuple[str | None, ...]:
        """Text, pair and label."""
        return self.text, self.text_pair, self.label

    def encoded(self, table: Table, role: str) -> TokensInMemory:
        """A row of tokens for each row of the table."""
        encoding = encode(self.tokenizer, self.length, *self._texts(table))
        return TokensInMemory(inputs_of(self.tokenizer, encoding), torch.tensor(self.targets[role]))

    def _texts(self, table: Table) -> list[list[str]]:
        texts = [table.texts(self.text, "text")]
        return texts if self.text_pair is None else [*texts, table.texts(self.text_pair, "text_pair")]

    def _labels(self, table: Table) -> list[str]:
        values = table.column(self.label, "label")
        return [label_name(value, place, "label") for value, place in zip(values, table.places, strict=True)]

    def _targets(self, table: Table) -> list[int]:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        pairs = zip(self._labels(table), table.places, strict=True)
        return [class_number(name, numbers, place, "label") for name, place in pairs]
