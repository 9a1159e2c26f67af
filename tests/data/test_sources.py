"""Roles from files: named ones, and those held out of the training file."""

from __future__ import annotations

from collections import Counter

import pytest

from nnicompress.data.sources import Files
from nnicompress.errors import ConfigError


@pytest.fixture
def rows(tmp_path):
    """100 rows: 80 of class a, 20 of class b."""
    path = tmp_path / "all.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{'b' if n % 5 == 0 else 'a'}\n" for n in range(100)))
    return path


def texts(table) -> list[str]:
    return [row["text"] for row in table.rows]


def test_fractions_divide_the_rows_evenly_over_the_classes(rows):
    roles = Files(str(rows), validation_fraction=0.2, test_fraction=0.1).roles("label")
    assert list(roles) == ["train", "validation", "test"]
    counts = {role: Counter(row["label"] for row in table.rows) for role, table in roles.items()}
    assert counts == {"train": {"a": 56, "b": 14}, "validation": {"a": 16, "b": 4}, "test": {"a": 8, "b": 2}}
    assert sorted(sum((texts(table) for table in roles.values()), [])) == sorted(f"text {n}" for n in range(100))
    again = Files(str(rows), validation_fraction=0.2, test_fraction=0.1).roles("label")
    assert all(texts(again[role]) == texts(roles[role]) for role in roles)


def test_held_out_rows_are_spread_over_the_file(rows):
    roles = Files(str(rows)).roles()
    numbers = [int(text.split()[1]) for text in texts(roles["test"])]
    assert len(numbers) == 10 and min(numbers) < 40 and max(numbers) > 60


def test_named_files_stay_whole(rows, tmp_path):
    (tmp_path / "v.jsonl").write_text('{"text": "v", "label": "a"}\n')
    (tmp_path / "t.txt").write_text("t\n")
    roles = Files(str(rows), validation=str(tmp_path / "v.jsonl"), test=str(tmp_path / "t.txt")).roles("label")
    assert len(roles["train"]) == 100 and texts(roles["validation"]) == ["v"] and texts(roles["test"]) == ["t"]
    only_test = Files(str(rows), test=str(tmp_path / "t.txt"), validation_fraction=0.25, test_fraction=7.0)
    assert {role: len(table) for role, table in only_test.roles("label").items()} == {
        "train": 75,
        "validation": 25,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0.0}, "data.source.validation_fraction: 0.0 is not between 0 and 1; or name the val"),
        ({"test_fraction": 1.5}, "data.source.test_fraction: 1.5 is not between 0 and 1; or name the test data"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "0.5 and test_fraction 0.5 leave nothing to train on"),
        ({"test_fraction": 0.001}, "data.source.test_fraction: 0.001 of 100 rows leaves none for the test role"),
        ({"documents": "pages"}, "data.source.documents: 'pages' is neither 'lines' nor 'file'"),
        ({"validation": "nowhere.csv"}, "data.source.validation: there is no file 'nowhere.csv'"),
    ],
)
def test_wrong_settings(rows, settings, message):
    with pytest.raises(ConfigError, match=message):
        Files(str(rows), **settings).roles()


def test_fractions_that_leave_one_row_are_right(rows):
    roles = Files(str(rows), validation_fraction=0.89, test_fraction=0.1).roles()
    assert {role: len(table) for role, table in roles.items()} == {"train": 1, "validation": 89, "test": 10}


def test_one_document_cannot_be_divided(tmp_path):
    (tmp_path / "book.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="test_fraction: 0.1 of 1 rows leaves none for the test role"):
        Files(str(tmp_path / "book.txt"), documents="file").roles()
