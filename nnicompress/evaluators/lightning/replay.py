"""Where in its data a training is, and how a resumed one comes back to that place.

The order of an epoch is drawn when its iterator begins, from the random states of that moment. Going on inside an epoch
means: set those states, begin the epoch again, pass over the batches that are done, and set the states of now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nnicompress.evaluators.preserve import random_states, set_random_states


class DataPosition:
    """What one training has drawn from its loaders; `ReplayedLoader` keeps it up to date."""

    def __init__(
        self,
        first_epoch: int,
        epoch: Callable[[], int],
        between_batches: Callable[[], None],
        resume: Mapping[str, Any] | None,
    ) -> None:
        """Begin a training.

        Args:
            first_epoch: full epochs of earlier trainings, added to what samplers with `first_epoch` are told.
            epoch: the current one, counted from 0.
            between_batches: called before a batch is fetched, when the business of the last one is over.
            resume: what `state_dict` returned, and `batches`, the number of batches done in that epoch.
        """
        self.first_epoch, self.epoch, self.between_batches = first_epoch, epoch, between_batches
        self.resume = resume
        self.loaders: list[Any] = []
        self._created: dict[str, Any] | None = None
        self._first: dict[str, Any] | None = None
        self._before: tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The random states of when the epoch began, of its first fetch, and of now."""
        return {"created": self._created, "first": self._first, "now": self._states()}

    def set_now(self) -> None:
        """A training that is resumed between two epochs goes on from the saved states."""
        if self.resume is not None and not self.resume["batches"]:
            self.finish()

    def finish(self) -> None:
        """A training that was done when it was saved: what comes after it goes on from the saved states."""
        if self.resume is not None:
            self._set(self.resume["now"])
            self.resume = None

    def put_back(self) -> None:
        """After a dry run: the loaders' generators and samplers are as they were before its first epoch."""
        if self._before is not None:
            states, samplers = self._before
            for generator, state in zip(generators(self.loaders), states["generators"], strict=True):
                generator.set_state(state)
            for sampler, attributes in samplers:
                vars(sampler).update(attributes)

    def begin(self, loaders: list[Any]) -> None:
        """An epoch's iterators are about to be made."""
        self.loaders = loaders
        if self._before is None:
            self._before = self._states(), [(sampler, dict(vars(sampler))) for sampler in _samplers(loaders)]
        for sampler in _samplers(loaders):
            if hasattr(sampler, "first_epoch"):
                sampler.first_epoch = self.first_epoch
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self.epoch())  # workers draw indices as soon as the iterator is made
        self._created, self._first = self._states(), None

    def fetch(self, begin: Callable[[], object], fetch: Callable[[], Any]) -> Any:
        """The next batch; the first one of a resumed training is the one after those that were done."""
        if self.resume is not None and self.resume["batches"]:
            resume, self.resume = self.resume, None
            self._set(resume["created"])
            begin()
            self._set(resume["first"])
            for _ in range(resume["batches"]):
                fetch()
            self._created, self._first = resume["created"], resume["first"]
            self._set(resume["now"])
        elif self._first is None:
            self._first = self._states()
        else:
            self.between_batches()
        return fetch()

    def _states(self) -> dict[str, Any]:
        return {"random": random_states(), "generators": [one.get_state() for one in generators(self.loaders)]}

    def _set(self, states: Mapping[str, Any]) -> None:
        set_random_states(states["random"])
        for generator, state in zip(generators(self.loaders), states["generators"], strict=True):
            generator.set_state(state)


class Replaying:
    """The half of `replayed` loaders that is not Lightning's `CombinedLoader`."""

    position: DataPosition
    flattened: list[Any]

    def __iter__(self) -> Any:
        self.position.begin(self.flattened)
        return super().__iter__()  # type: ignore[misc]

    def __next__(self) -> Any:
        return self.position.fetch(self._begin_again, super().__next__)  # type: ignore[misc]

    def _begin_again(self) -> None:
        if self.position.epoch() == 0:
            self.reset()  # type: ignore[attr-defined]  # persistent workers draw their seed when they are first started
        super().__iter__()  # type: ignore[misc]


def replayed(loaders: Any, position: DataPosition, combined_loader: type) -> Any:
    """`loaders` (one, or a collection) as Lightning combines them, watched by `position`."""
    if isinstance(loaders, combined_loader):
        loaders, mode = loaders.iterables, loaders._mode  # type: ignore[attr-defined]
    else:
        mode = "max_size_cycle"
    loader = type("ReplayedLoader", (Replaying, combined_loader), {})(loaders, mode)
    loader.position = position
    position.loaders = loader.flattened
    return loader


def generators(loaders: list[Any]) -> list[Any]:
    """The torch generators that loaders and their samplers draw from, each once."""
    found: dict[int, Any] = {}
    for owner in (*loaders, *_samplers(loaders)):
        if (generator := getattr(owner, "generator", None)) is not None:
            found.setdefault(id(generator), generator)
    return list(found.values())


def _samplers(loaders: list[Any]) -> Iterator[Any]:
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        batch_sampler = getattr(loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        yield from (one for one in (sampler, batch_sampler, None if inner is sampler else inner) if one is not None)
