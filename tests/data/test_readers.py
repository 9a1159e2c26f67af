"""Local files as tables, against the csv and json modules used by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from nnicompress.data.readers import read_table
from nnicompress.data.tables import Table
from nnicompress.errors import ConfigError


def read(path: Path, content: str | bytes, **settings) -> Table:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, key="source.train", **settings)


def test_csv_is_what_the_csv_module_reads(tmp_path):
    content = 'text,label\r\n"a, ""quoted"" comma",1\r\n"two\nlines",0\r\n\r\nplain,1\r\n'
    table = read(tmp_path / "x.csv", content)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(table.rows) == list(csv.DictReader(file))
    assert table.rows[0]["text"] == 'a, "quoted" comma'
    assert table.places == ["x.csv:2", "x.csv:4", "x.csv:6"]


def test_tab_and_semicolon(tmp_path):
    assert read(tmp_path / "x.tsv", "a\tb\n1,5\t2\n").rows == [{"a": "1,5", "b": "2"}]
    assert read(tmp_path / "x.csv", "a;b\n1,5;2\n", delimiter=";").rows == [{"a": "1,5", "b": "2"}]


def test_a_field_longer_than_the_csv_module_allows(tmp_path):
    before = csv.field_size_limit()
    table = read(tmp_path / "x.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(table.rows[0]["text"]) == 200_000 and csv.field_size_limit() == before


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert read(tmp_path / "x.csv", b"\xef\xbb\xbftext\nhi\n").rows == [{"text": "hi"}]


def test_other_encodings(tmp_path):
    content = "text\ncafé\n".encode("latin-1")
    assert read(tmp_path / "x.csv", content, encoding="latin-1").rows == [{"text": "café"}]
    with pytest.raises(ConfigError, match=r"x.csv:2: byte 0xe9 is not utf-8; convert the file, or set data.source.enc"):
        read(tmp_path / "x.csv", content)
    with pytest.raises(ConfigError, match="data.source.encoding: 'latin-77' is not an encoding"):
        read(tmp_path / "x.csv", content, encoding="latin-77")


def test_json_and_json_lines_are_the_same_rows(tmp_path):
    rows = [{"text": "a\u2028b", "label": 1}, {"text": "ü", "label": 0}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert list(read(tmp_path / "x.json", json.dumps(rows)).rows) == rows
    table = read(tmp_path / "x.jsonl", lines)
    assert list(table.rows) == rows and table.places == ["x.jsonl:1", "x.jsonl:3"]


def test_plain_text_by_line_and_as_a_whole(tmp_path):
    content = "first\n\n  second \n"
    lines = read(tmp_path / "x.txt", content)
    assert lines.rows == [{"text": "first"}, {"text": "  second "}] and lines.places == ["x.txt:1", "x.txt:3"]
    assert read(tmp_path / "x.txt", content, documents="file").rows == [{"text": content}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n1,2,3\n", "x.csv:3: 3 fields, and line 1 names 2 columns"),
        ("x.csv", 'a,b\n"1"2,3\n', "x.csv:2: ',' expected after"),
        ("x.csv", "a,a\n1,2\n", "x.csv:1: a column name occurs twice: a, a"),
        ("x.csv", "a,b\n", "'x.csv' is empty"),
        ("x.csv", "", "'x.csv' is empty"),
        ("x.txt", " \n\n", "'x.txt' is empty"),
        ("x.jsonl", '{"a": 1}\n{"a": 1,}\n', "x.jsonl:2: not JSON: .* at character"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "x.jsonl:2: list where an object"),
        ("x.json", '{"a": 1}\n{"a": 2}\n', "x.json:2: not JSON: Extra data; a file with one object a line ends in .j"),
        ("x.json", '{"a": 1}', r"'x.json' must hold a list of objects, \[{...}, ...\]"),
        ("x.parquet", "", "'x.parquet' ends in '.parquet'; it must end in .csv, .tsv"),
        ("x", "", "'x' ends in 'nothing'"),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path / name, content)
    assert caught.value.key == "data.source.train"


def test_a_missing_file_shows_what_is_there(tmp_path):
    (tmp_path / "reviews.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError, match=r"there is no file .*review.csv' \(in that folder: reviews.csv\)"):
        read_table(tmp_path / "review.csv", key="source.train")
    with pytest.raises(ConfigError, match="there is no file"):
        read_table(tmp_path / "nowhere" / "x.csv", key="source.train")


def test_a_delimiter_is_one_character(tmp_path):
    with pytest.raises(ConfigError, match="data.source.delimiter: ';;' is not one character"):
        read(tmp_path / "x.csv", "a\n1\n", delimiter=";;")


def test_columns_and_what_is_wrong_with_them():
    table = Table([{"text": "a", "label": 1}, {"text": " ", "label": None}], ["x:1", "x:2"])
    assert table.column("text", "text") == ["a", " "]
    with pytest.raises(ConfigError, match=r"data.text: there is no column 'texts'; did you mean 'text'\? \(columns: t"):
        table.column("texts", "text")
    with pytest.raises(ConfigError, match="data.label: x:2: no value in the column 'label'"):
        table.column("label", "label")
    with pytest.raises(ConfigError, match="data.text: x:2: the text in 'text' is empty; remove the row"):
        table.texts("text", "text")
    with pytest.raises(ConfigError, match="data.text: x:1: 'label' is int, not a text"):
        Table([{"label": 1}], ["x:1"]).texts("label", "text")


def test_taking_rows_keeps_their_places():
    table = Table([{"n": n} for n in range(5)], [f"x:{n}" for n in range(5)], {"n": ["a"]}, Path("f"))
    taken = table.take([3, 1])
    assert taken.rows == [{"n": 3}, {"n": 1}] and taken.places == ["x:3", "x:1"]
    assert taken.categories == table.categories and taken.folder == table.folder
