"""English prose that every Python carries: the topics that `help()` shows, about 460,000 characters."""

from __future__ import annotations

import hashlib

from nnicompress.data.sources import ROLES
from nnicompress.data.tables import Table

SHARES = 10
"""One topic of ten is a test document, one a validation document, by the hash of its name."""


class PydocTopics:
    """A source with the columns `topic` and `text`, one row a topic of `pydoc_data.topics`.

    The texts are those of the running Python: another version has other ones, and so another fingerprint. A topic stays
    in its role whatever other topics there are. They are sections of the Python Language Reference (PSF License).
    """

    def roles(self, stratify: str | None = None) -> dict[str, Table]:
        """The topics of each role, by name; `stratify` changes nothing, since there are no classes."""
        # Half a megabyte of source, and not every Python installation has it: imported when asked for.
        from pydoc_data.topics import topics

        by_role: dict[str, list[str]] = {role: [] for role in ROLES}
        for topic in sorted(topics):
            by_role[role_of(topic)].append(topic)
        return {
            role: Table(
                [{"topic": name, "text": topics[name]} for name in names], [f"topic {name!r}" for name in names]
            )
            for role, names in by_role.items()
        }


def role_of(topic: str) -> str:
    """The role of a topic, by its name alone."""
    share = int.from_bytes(hashlib.sha256(topic.encode()).digest()[:8], "big") % SHARES
    return {0: "test", 1: "validation"}.get(share, "train")
