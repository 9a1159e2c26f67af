"""Python's own help texts as a corpus."""

from __future__ import annotations

from pydoc_data.topics import topics

from nnicompress.data.language_modelling import CausalLM
from nnicompress.data.pydoc_topics import PydocTopics, role_of


def test_each_topic_is_in_one_role_with_its_text():
    roles = PydocTopics().roles()
    rows = [row for table in roles.values() for row in table.rows]
    assert len(rows) == len(topics) and {row["topic"]: row["text"] for row in rows} == topics
    characters = {role: sum(len(row["text"]) for row in table.rows) for role, table in roles.items()}
    assert characters["train"] > 300_000 and min(characters.values()) > 10_000


def test_a_topic_keeps_its_role():
    placed = {"binary": "test", "debugger": "test", "continue": "validation", "while": "validation", "import": "train"}
    assert {name: role_of(name) for name in placed} == placed


def test_the_same_blocks_each_time():
    first, second = (CausalLM(PydocTopics(), "bytes", 260, block_size=512) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    (inputs, _), (same, _) = (next(iter(data.train_loader(5))) for data in (first, second))
    assert inputs["input_ids"].equal(same["input_ids"])
    text = first.tokenizer.decode(first.dataset("test")[0][0]["input_ids"])
    assert first.tables["test"].rows[0]["text"].startswith(text)
