"""Disjoint sets of channel slots, against a dictionary of sets."""

import numpy as np

from nnicompress.graph.atoms import Atoms


def partition(atoms: Atoms, count: int) -> set[frozenset[int]]:
    roots = atoms.find(np.arange(count))
    return {frozenset(np.flatnonzero(roots == root).tolist()) for root in np.unique(roots)}


def test_random_unions_give_the_partition_of_a_naive_implementation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        atoms = Atoms()
        atoms.new(60)
        naive = [{number} for number in range(60)]
        for _ in range(6):
            left, right = rng.integers(0, 60, (2, 8))
            atoms.unite(left, right)
            for a, b in zip(left.tolist(), right.tolist(), strict=True):
                one, other = next(s for s in naive if a in s), next(s for s in naive if b in s)
                if one is not other:
                    naive.remove(other)
                    one |= other
        assert partition(atoms, 60) == {frozenset(s) for s in naive}


def test_one_atom_united_with_many_at_once_takes_them_all() -> None:
    atoms = Atoms()
    atoms.new(5)
    atoms.unite(np.array([4, 4, 4]), np.array([2, 1, 3]))
    assert partition(atoms, 5) == {frozenset({0}), frozenset({1, 2, 3, 4})}


def test_new_atoms_survive_growth() -> None:
    atoms = Atoms()
    first = atoms.new(3)
    atoms.unite(first[:1], first[2:])
    atoms.new(5000)
    assert partition(atoms, 3) == {frozenset({0, 2}), frozenset({1})}


def test_a_lock_holds_for_the_whole_set_and_keeps_its_first_reason() -> None:
    atoms = Atoms()
    atoms.new(4)
    atoms.lock(np.array([3]), "first")
    atoms.unite(np.array([3]), np.array([1]))
    atoms.lock(np.array([1]), "second")
    assert atoms.locked() == {1: "first"}
