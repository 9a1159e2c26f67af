"""Where a training is in its data, with the random states that each batch in flight was made with.

A Trainer fetches batches ahead: those of an accumulation together, and accelerate one more. So random augmentation of
a later batch is drawn before an earlier step's dropout. To go on with the same bits, a resumed training fetches the
batches that were in flight again, each with the random states it was first made with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from nnicompress.evaluators.preserve import random_states, set_random_states


class Fetching:
    """Counts an epoch's batches as they are fetched, and remembers or sets the random states before each."""

    def __init__(self, resume: Mapping[str, Any] | None = None) -> None:
        """`resume`: what `state_dict` returned; its batches in flight are fetched again with their random states."""
        self._resume = resume
        self._epoch_start: dict[str, Any] | None = None
        self._fetched = 0
        self._before: dict[int, Any] = {}
        self._replay: dict[int, Any] = {}

    def epoch_begins(self) -> None:
        """Nothing of the epoch's data is drawn yet."""
        self._fetched, self._before, self._replay = 0, {}, {}
        resume = self._resume
        if resume is not None:
            set_random_states(resume["epoch_start"])
            self._fetched = resume["taken"]
            self._replay = {number: states for number, states in resume["in_flight"]}
            if not self._fetched:  # it was saved before anything was fetched
                self._resume = None
        self._epoch_start = random_states()

    def step_begins(self) -> None:
        """All is fetched that is fetched before this step; a resumed training is now where it was saved."""
        if self._resume is not None:
            set_random_states(self._resume["now"])
            self._resume, self._replay = None, {}

    def fetch_begins(self) -> None:
        """The next batch is about to be fetched."""
        self._fetched += 1
        if self._fetched in self._replay:
            set_random_states(self._replay[self._fetched])
        self._before[self._fetched] = random_states()

    def state_dict(self, taken: int) -> dict[str, Any]:
        """As plain values, where `taken` batches of the epoch have been trained on; 0: the epoch has yet to begin."""
        now = random_states()
        self._before = {number: states for number, states in self._before.items() if number > taken}
        return {
            "taken": taken,
            "now": now,
            "epoch_start": self._epoch_start if taken else now,
            "in_flight": [[number, states] for number, states in self._before.items()] if taken else [],
        }


class Fetched(Dataset[Any]):
    """A dataset that tells when a batch of it is fetched; for everything else it is the dataset."""

    def __init__(self, dataset: Any, fetching: Fetching) -> None:
        self._dataset, self._fetching = dataset, fetching

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_dataset", "_fetching"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Any) -> Any:
        return self._dataset[key]

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        """The batch of these keys, as torch's fetcher would make it of the dataset."""
        self._fetching.fetch_begins()
        whole = getattr(self._dataset, "__getitems__", None)
        return whole(keys) if whole else [self._dataset[key] for key in keys]
