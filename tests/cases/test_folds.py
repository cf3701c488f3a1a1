"""Folds: the permutation rule, whole patients, sites spread evenly."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.folds import split_folds
from medseg_brn.errors import DataError


def make_case(name: str, patient: str | None = None, site: str | None = None) -> Case:
    return Case(name, (Path("image.nii"),), site=site, patient=patient)


def names(folds: list[list[Case]]) -> list[list[str]]:
    return [[case.name for case in fold] for fold in folds]


@pytest.mark.parametrize("seed", [0, 7])
def test_without_sites_the_sorted_names_are_permuted_and_cut(seed: int) -> None:
    ordered = [f"case_{n:02d}" for n in range(11)]
    shuffled = [make_case(ordered[n]) for n in np.random.default_rng(99).permutation(11)]
    permuted = [ordered[n] for n in np.random.default_rng(seed).permutation(11)]
    expected = [permuted[:4], permuted[4:8], permuted[8:]]
    assert names(split_folds(shuffled, 3, seed)) == expected


def test_patients_of_one_case_each_or_one_site_change_nothing() -> None:
    plain = [make_case(f"c{n}") for n in range(10)]
    told = [make_case(f"c{n}", patient=f"P{9 - n}", site="Basel") for n in range(10)]
    assert names(split_folds(told, 5, 3)) == names(split_folds(plain, 5, 3))


def test_another_seed_gives_other_folds() -> None:
    cases = [make_case(f"c{n:02d}") for n in range(20)]
    assert names(split_folds(cases, 5, 0)) != names(split_folds(cases, 5, 1))


def test_cases_of_a_patient_stay_together() -> None:
    cases = [make_case(f"c{n}", patient="abc"[n % 3]) for n in range(9)]
    assert sorted(map(sorted, names(split_folds(cases, 3, 0)))) == [
        ["c0", "c3", "c6"],
        ["c1", "c4", "c7"],
        ["c2", "c5", "c8"],
    ]


def test_a_patient_may_be_called_as_another_ones_case() -> None:
    cases = [make_case("a"), make_case("b", patient="a")]
    assert sorted(names(split_folds(cases, 2, 0))) == [["a"], ["b"]]


def test_sites_are_spread_evenly() -> None:
    cases = [make_case(f"c{n:02d}", site="large" if n < 15 else "small") for n in range(20)]
    for fold in split_folds(cases, 5, 0):
        assert Counter(case.site for case in fold) == {"large": 3, "small": 1}


@pytest.mark.parametrize("folds", [1, 4])
def test_more_folds_than_patients_are_refused(folds: int) -> None:
    cases = [make_case(f"c{n}", patient=f"p{n % 3}") for n in range(6)]
    with pytest.raises(
        DataError, match=rf"3 patients \(6 cases\) cannot be split into {folds} folds.* 2 and 3"
    ):
        split_folds(cases, folds, 0)


def test_two_cases_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="Two cases are named 'c1'"):
        split_folds([make_case("c1"), make_case("c0"), make_case("c1")], 2, 0)


SITES = st.sampled_from([None, "A", "B", "C"])
PATIENTS = st.one_of(st.none(), st.integers(0, 9).map(str))


@given(
    st.lists(st.tuples(PATIENTS, SITES), min_size=12, max_size=40),
    st.integers(2, 5),
    st.integers(0, 2**32 - 1),
)
def test_folds_are_a_partition_of_whole_patients(
    drawn: list[tuple[str | None, str | None]], folds: int, seed: int
) -> None:
    cases = [make_case(f"c{n:02d}", patient, site) for n, (patient, site) in enumerate(drawn)]
    units = {case.patient or case.name for case in cases}
    if len(units) < folds:
        return
    split = split_folds(cases, folds, seed)
    assert len(split) == folds
    assert sorted(name for fold in names(split) for name in fold) == [case.name for case in cases]
    patients = [{case.patient or case.name for case in fold} for fold in split]
    assert sum(map(len, patients)) == len(units), "a patient is in two folds"
    assert max(map(len, patients)) - min(map(len, patients)) <= 1
    assert names(split_folds(cases[::-1], folds, seed)) == names(split)


@given(st.lists(SITES, min_size=5, max_size=40), st.integers(0, 1000))
def test_the_folds_of_each_site_differ_by_one_case_at_most(sites: list[str | None], seed: int) -> None:
    cases = [make_case(f"c{n:02d}", site=site) for n, site in enumerate(sites)]
    split = split_folds(cases, 5, seed)
    for site in set(sites):
        counts = [sum(case.site == site for case in fold) for fold in split]
        assert max(counts) - min(counts) <= 1


def test_the_hippocampus_folds_follow_the_rule(data_folder: Path) -> None:
    cases = read_dataset(data_folder / "Task04_Hippocampus").cases
    ordered = sorted(case.name for case in cases)
    first = np.array_split(np.random.default_rng(0).permutation(208), 5)[0]
    assert names(split_folds(cases, 5, 0))[0] == [ordered[n] for n in first]
