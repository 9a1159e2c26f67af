"""Which torch calls of a forward in training are which ones in evaluation mode, whose numbers name places.

A forward may make calls in one mode alone: noise that is added in training shifts the number of every later add. So
calls are told by where they stand in the code, and by number only where the modes run different code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from nnicompress.errors import UserError

Run = Sequence[tuple[str, Hashable]]
"""One run of a module's forward: each numbered call's name, and its site in the code."""
Numbers = Mapping[str, Mapping[int, int]]
"""Name of a call -> its number in training -> its number in evaluation mode; none: it is made in training alone."""


def training_numbers(
    evaluation: Mapping[str, Sequence[Run]], training: Mapping[str, Sequence[Run]]
) -> dict[str, Numbers]:
    """The numbers in evaluation mode of the calls in training, for each frame and name in which the two differ.

    Raises:
        UserError: a module runs several times, and its calls differ in training in several ways.
    """
    found: dict[str, Numbers] = {}
    for frame, runs in training.items():
        numbers: dict[str, dict[int, int]] = defaultdict(dict)
        known: dict[tuple[str, int], int | None] = {}
        for run, other in zip(runs, evaluation.get(frame, ()), strict=False):
            for name in {name for name, _ in run}:
                for number, same in enumerate(_matched(_sites(run, name), _sites(other, name))):
                    if known.setdefault((name, number), same) != same:
                        raise UserError(
                            f"{frame or 'the model'} runs several times, and in training its calls of {name} differ "
                            "from those in evaluation mode in more than one way; leave it out with exclude_op_names"
                        )
        for (name, number), same in known.items():
            if same is not None:
                numbers[name][number] = same
        differing = {name for (name, number), same in known.items() if same != number}
        if differing:
            found[frame] = {name: numbers[name] for name in differing}
    return found


def refuse_checkpointed(
    places: Iterable[str], checkpointed: Iterable[tuple[str, str, int]], numbers: Mapping[str, Numbers]
) -> None:
    """Refuse quantizers at calls that a training runs again where no frame sees them.

    `checkpointed` are frame, name and number in training.

    Raises:
        UserError: names the first one.
    """
    calls = {place.rpartition("/")[0] for place in places if place.count("/") == 2}
    for frame, name, number in sorted(checkpointed):
        own = numbers.get(frame, {})
        call = f"{frame}/{name}_{own[name].get(number) if name in own else number}"
        if call in calls:
            raise UserError(
                f"{call} is in a function that is checkpointed, whose second run is in no module's forward; checkpoint "
                "a module instead, or leave it out with exclude_op_names"
            )


def _sites(run: Run, name: str) -> list[Hashable]:
    return [site for called, site in run if called == name]


def _matched(sites: Iterable[Hashable], others: Sequence[Hashable]) -> list[int | None]:
    """The index in `others` of each of `sites`: of the same one, as often as it has been met."""
    sites = list(sites)
    if set(sites).isdisjoint(others) and len(sites) == len(others):
        return list(range(len(sites)))
    places: dict[tuple[Hashable, int], int] = {}
    met: Counter[Hashable] = Counter()
    for index, site in enumerate(others):
        places[site, met[site]] = index
        met[site] += 1
    met.clear()
    found: list[int | None] = []
    for site in sites:
        found.append(places.get((site, met[site])))
        met[site] += 1
    return found
