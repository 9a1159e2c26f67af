"""Class names and numbers: what a column of labels holds, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nnicompress.data.roles import check_fact, require
from nnicompress.errors import did_you_mean


def label_name(value: Any, place: str, key: str) -> str:
    """A label as text: `3` and `"3"` are the same class.

    Raises:
        ConfigError: it is neither a text nor a whole number.
    """
    require(isinstance(value, (str, int)), key, f"{place}: the label {value!r} is neither a text nor a whole number")
    name = str(value)
    require(bool(name.strip()), key, f"{place}: the label is empty")
    return name


def class_order(names: Iterable[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """The class names in the order of their numbers: as given; else by value if all are whole numbers; else sorted."""
    if given is not None:
        order = tuple(str(name) for name in given)
        require(len(set(order)) == len(order), "class_names", f"a name occurs twice: {', '.join(order)}")
        return order
    found = set(names)
    numeric = all(name.removeprefix("-").isdecimal() for name in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def check_num_classes(num_classes: int, order: Sequence[str], given: bool) -> None:
    """Raise a ConfigError where `num_classes` isn't the number of classes."""
    shown = ", ".join(order[:8]) + (" ..." if len(order) > 8 else "")
    what = "the length of class_names is" if given else f"the number of labels in the training data ({shown}) is"
    check_fact("num_classes", num_classes, len(order), what)


def class_number(name: str, numbers: dict[str, int], place: str, key: str) -> int:
    """The number of a class; `numbers` are those of all known names.

    Raises:
        ConfigError: the name is none of them.
    """
    known = ", ".join(list(numbers)[:8]) + (" ..." if len(numbers) > 8 else "")
    require(
        name in numbers,
        key,
        f"{place}: the label {name!r} is none of the classes ({known}){did_you_mean(name, numbers)}",
    )
    return numbers[name]
