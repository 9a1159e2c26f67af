"""What all text data share: tables of rows, a tokenizer, and loaders over token numbers."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch.utils.data import Dataset

from nnicompress.data.loaders import RoleLoaders
from nnicompress.data.roles import require
from nnicompress.data.sources import ROLES, Source, check_source
from nnicompress.data.tables import Table
from nnicompress.data.tokenization import make_tokenizer
from nnicompress.data.tokens import TokenBatch, check_length


class TextData(RoleLoaders):
    """Text with the roles train, validation and test; the tokens of a role are made when they are first asked for.

    A task says how a table becomes a dataset (`encoded`) and which columns it reads (`columns`).
    """

    num_classes: int

    def __init__(self, source: Source, *, batch_size: int, length: int, drop_last: bool, stratify: str | None) -> None:
        require(batch_size >= 1, "batch_size", f"{batch_size} is not a positive number of rows")
        check_source(source)
        self.batch_size, self.length, self.drop_last = batch_size, length, drop_last
        self.input_shape = (length,)
        self.tables = source.roles(stratify)
        self._datasets: dict[str, Dataset[TokenBatch]] = {}

    def use_tokenizer(self, name: str, vocab_size: int | None, texts: Iterable[str], length_key: str) -> None:
        """Load or learn the tokenizer; `texts` are the training texts, `length_key` the setting of the length."""
        self.tokenizer = make_tokenizer(name, vocab_size, list(texts))
        self.vocab_size = len(self.tokenizer)
        check_length(self.tokenizer, self.length, length_key)
        self.preprocessing: Mapping[str, Any] = {
            "tokenizer": name,
            length_key: self.length,
            "columns": [name for name in self.columns() if name is not None],
        }

    @abstractmethod
    def columns(self) -> tuple[str | None, ...]:
        """The columns that the task reads; None for one that is not used."""

    @abstractmethod
    def encoded(self, table: Table, role: str) -> Dataset[TokenBatch]:
        """The tokens and targets of a role's rows; its `__getitems__` returns a batch."""

    def dataset(self, role: str) -> Dataset[TokenBatch]:
        """The tokens and targets of a role, made once."""
        if role not in self._datasets:
            self._datasets[role] = self.encoded(self.tables[role], role)
        return self._datasets[role]

    def fingerprint(self) -> str:
        """A hash of the columns that are read, row by row, and of the vocabulary."""
        digest = hashlib.sha256()
        names = [name for name in self.columns() if name is not None]
        for role in ROLES:
            for row in self.tables[role].rows:
                digest.update(json.dumps([role, *(row[name] for name in names)]).encode())
        vocabulary = cast("dict[str, int]", self.tokenizer.get_vocab())
        digest.update(json.dumps(sorted(vocabulary.items())).encode())
        return digest.hexdigest()
