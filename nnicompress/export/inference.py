"""What inference needs beside the model, as the data object tells it: preprocessing, labels, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnicompress.data.roles import Data
from nnicompress.errors import UserError

PREPROCESSING, LABELS, TOKENIZER = "preprocessing.json", "labels.json", "tokenizer"


def write_inference_files(data: Data, folder: Path) -> None:
    """Write `preprocessing.json`, `labels.json` and the tokenizer's files into `folder`, those that `data` can tell.

    Raises:
        UserError: see `inference_facts`.
    """
    preprocessing, labels, save_tokenizer = inference_facts(data)
    _write(folder / PREPROCESSING, preprocessing)
    if labels is not None:
        _write(folder / LABELS, labels)
    if save_tokenizer is not None:
        save_tokenizer(str(folder / TOKENIZER))


def inference_facts(data: Data) -> tuple[dict[str, Any], list[str] | None, Callable[[str], Any] | None]:
    """What `preprocessing.json` holds, the names of the classes, and the tokenizer's `save_pretrained`.

    The members `preprocessing` (a mapping of plain values), `class_names` (a text for each class, in the order of their
    numbers) and `tokenizer` of a data object are optional.

    Raises:
        UserError: one of them is there and is something else.
    """
    name = type(data).__name__
    given = getattr(data, "preprocessing", None)
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{name}.preprocessing is {_kind(given)}; it must be a mapping of plain values, such as mean")
    facts = {"data": name, "input_shape": list(data.input_shape), **(given or {})}
    try:
        facts = json.loads(json.dumps(facts))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}.preprocessing can't be written as JSON: {error}; give plain values") from error
    return facts, _labels(data, name), _tokenizer(data, name)


def _labels(data: Data, name: str) -> list[str] | None:
    labels = getattr(data, "class_names", None)
    if labels is None:
        return None
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(x, str) for x in labels):
        raise UserError(f"{name}.class_names is {_kind(labels)}; it must be a list of texts, one for each class")
    if len(labels) != data.num_classes:
        raise UserError(f"{name}.class_names has {len(labels)} names, and num_classes is {data.num_classes}")
    return list(labels)


def _tokenizer(data: Data, name: str) -> Callable[[str], Any] | None:
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is None:
        return None
    save = getattr(tokenizer, "save_pretrained", None)
    if not callable(save):
        raise UserError(f"{name}.tokenizer is {_kind(tokenizer)}; it must have save_pretrained(folder)")
    save_to: Callable[[str], Any] = save
    return save_to


def _kind(value: Any) -> str:
    kind = f"{type(value).__name__}"
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
