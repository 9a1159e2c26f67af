"""A stage's key: everything that changes its result. An unchanged key means an unchanged result, which is reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.manifest import versions
from nnicompress.pipeline.settings import READS, StartSettings
from nnicompress.user_code import own_code, user_code

Parts = dict[str, Any]
"""The parts of a key by name, JSON-able; kept beside the result, so that a difference can be explained."""


def stage_parts(job: Job, plan: StagePlan, index: int, incoming: str, device: torch.device) -> Parts:
    """What the result of stage `index` (from 1) depends on; `incoming` is a digest of what earlier stages left.

    Settings that only later stages read, bounds, names and folders are not among them.
    """
    config = job.resolved_config
    parts: Parts = {
        "stage": f"{index} {plan.name}",
        "settings": {
            **{
                f"stages.{plan.name}": (config.get("stages") or {}).get(
                    plan.name, plan.settings.model_dump(mode="json")
                )
            },
            **{group: config[group] for group in READS[plan.name] if group in config},
        },
        "seed": job.seed,
        "smoke": job.smoke,
        "data": job.data.fingerprint(),
        "code": user_code(config),
        "versions": versions(),
        "nnicompress": own_code(),
        "device": f"{device.type}, {torch.get_num_threads()} threads",
        "incoming": incoming,
    }
    if isinstance(plan.settings, StartSettings):
        checkpoint = Path(plan.settings.checkpoint).expanduser()
        parts["checkpoint"] = file_digest(checkpoint) if checkpoint.is_file() else "missing"
    parts = json.loads(json.dumps(parts, default=str))
    return parts


def digest_of(parts: Parts) -> str:
    """The key itself."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differences(old: Parts, new: Parts) -> list[str]:
    """What changed between two keys, one phrase each: `stages.finetune.max_epochs was 4, is 5`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    phrases = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if was != now:
            group, _, name = key.partition("/")
            phrases.append(_phrase(group, name, was, now))
    return phrases


def _phrase(group: str, name: str, was: Any, now: Any) -> str:
    if group == "code":
        return f"the code of {name} changed"
    if group == "incoming":
        return "it starts from other weights"
    if group == "nnicompress":
        return "nnicompress's own code changed"
    if group == "checkpoint":
        return "the checkpoint's file changed"
    if group == "data":
        return "the data changed"
    return f"{name or group} was {was}, is {now}"


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`settings/stages.train.max_epochs` -> value: the part's name, then dotted keys."""
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            joined = f"{prefix}.{name}" if "/" in prefix and not prefix.endswith("/") else f"{prefix}{name}"
            yield from _flat(child, joined if prefix else f"{name}/")
    else:
        yield prefix.rstrip("/"), node
