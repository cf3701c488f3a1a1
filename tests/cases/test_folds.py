"""Folds: the permutation rule, whole patients, sites spread evenly."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.folds import split_by_site, split_folds
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


def test_leaving_a_site_out_holds_out_all_of_its_cases() -> None:
    cases = [make_case(f"c{n}", site="BAC"[n % 3]) for n in range(8)]
    assert {site: [case.name for case in own] for site, own in split_by_site(cases[::-1]).items()} == {
        "A": ["c1", "c4", "c7"],
        "B": ["c0", "c3", "c6"],
        "C": ["c2", "c5"],
    }


def test_a_patient_at_two_sites_is_told_by_name() -> None:
    cases = [make_case("c0", "p1", "A"), make_case("c1", "p2", "A"), make_case("c2", "p1", "B")]
    with pytest.raises(DataError, match=r"Of 2 patients 1 were seen .*'p1' \(c0 at A, c2 at B\)"):
        split_by_site(cases)
    with pytest.raises(DataError, match=r"All 2 cases are of site 'A'"):
        split_by_site(cases[:2])
    with pytest.raises(DataError, match=r"dataset\.folds_by=site needs .* 1 of 2 name none \(c9\)"):
        split_by_site([cases[0], make_case("c9")])


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


def count(folds: list[list[Case]], classes: dict[str, set[int]], value: int) -> list[int]:
    """Cases of each fold that have a class."""
    return [sum(value in classes[case.name] for case in fold) for fold in folds]


@pytest.mark.parametrize("sites", [[None], ["A", "B"]])
def test_classes_that_all_patients_have_change_nothing(sites: list[str | None]) -> None:
    cases = [make_case(f"c{n:02d}", site=sites[n % len(sites)]) for n in range(13)]
    everywhere = {case.name: {1, 2} for case in cases}
    assert names(split_folds(cases, 5, 3, everywhere)) == names(split_folds(cases, 5, 3))
    assert names(split_folds(cases, 5, 3, {})) == names(split_folds(cases, 5, 3))


def test_a_rare_class_is_in_every_fold() -> None:
    cases = [make_case(f"c{n:02d}") for n in range(25)]
    classes = {case.name: {1, 2} if n < 5 else {1} for n, case in enumerate(cases)}
    for seed in range(10):
        folds = split_folds(cases, 5, seed, classes)
        assert count(folds, classes, 2) == [1] * 5
        assert [len(fold) for fold in folds] == [5] * 5
    without = [count(split_folds(cases, 5, seed), classes, 2) for seed in range(10)]
    assert any(0 in counts for counts in without), "chance would do as well"


def test_sites_and_classes_are_spread_together() -> None:
    """Two sites of 10; a class that 4 cases of one site and 6 of the other have; two folds."""
    cases = [make_case(f"c{n:02d}", site="A" if n < 10 else "B") for n in range(20)]
    classes = {case.name: {1} if n < 4 or 10 <= n < 16 else set() for n, case in enumerate(cases)}
    for fold in split_folds(cases, 2, 0, classes):
        assert Counter(case.site for case in fold) == {"A": 5, "B": 5}
        assert sum(1 in classes[case.name] for case in fold) == 5


def test_a_patient_has_the_classes_of_all_its_cases() -> None:
    cases = [make_case(f"p{p}-{scan}", patient=f"p{p}") for p in range(8) for scan in "ab"]
    classes = {case.name: {1} if case.name.endswith("b") and case.name < "p4" else set() for case in cases}
    folds = split_folds(cases, 4, 0, classes)
    assert count(folds, classes, 1) == [1] * 4
    assert [len({case.patient for case in fold}) for fold in folds] == [2] * 4


CLASSES = st.frozensets(st.integers(1, 4))


@given(
    st.lists(st.tuples(PATIENTS, SITES, CLASSES), min_size=12, max_size=40),
    st.integers(2, 5),
    st.integers(0, 2**32 - 1),
)
def test_folds_by_class_are_a_partition_of_whole_patients(
    drawn: list[tuple[str | None, str | None, frozenset[int]]], folds: int, seed: int
) -> None:
    cases = [make_case(f"c{n:02d}", patient, site) for n, (patient, site, _) in enumerate(drawn)]
    classes = {case.name: set(own) for case, (_, _, own) in zip(cases, drawn, strict=True)}
    if len({case.patient or case.name for case in cases}) < folds:
        return
    split = split_folds(cases, folds, seed, classes)
    assert sorted(name for fold in names(split) for name in fold) == [case.name for case in cases]
    patients = [{("patient", case.patient) if case.patient else case.name for case in fold} for fold in split]
    assert len(set.union(*patients)) == sum(map(len, patients)), "a patient is in two folds"
    assert max(map(len, patients)) - min(map(len, patients)) <= 1
    assert names(split_folds(cases[::-1], folds, seed, classes)) == names(split)


@given(st.lists(st.booleans(), min_size=5, max_size=60), st.integers(2, 5), st.integers(0, 1000))
def test_the_cases_of_a_class_differ_by_one_at_most(has: list[bool], folds: int, seed: int) -> None:
    cases = [make_case(f"c{n:02d}") for n in range(len(has))]
    classes = {case.name: {1, 2} if own else {2} for case, own in zip(cases, has, strict=True)}
    counts = count(split_folds(cases, folds, seed, classes), classes, 1)
    assert max(counts) - min(counts) <= 1


@given(st.lists(CLASSES, min_size=4, max_size=7), st.integers(0, 1000))
def test_no_change_of_two_places_makes_two_folds_more_alike(drawn: list[frozenset[int]], seed: int) -> None:
    """Against every split that differs by one patient of each fold; another one may still be more even."""
    cases = [make_case(f"c{n}") for n in range(len(drawn))]
    classes = {case.name: set(own) for case, own in zip(cases, drawn, strict=True)}
    totals = Counter(value for own in drawn for value in own)
    if all(total == len(drawn) for total in totals.values()):
        return  # the permutation, which has no say in this

    def unevenness(one: set[str], other: set[str]) -> float:
        return sum(
            sum(sum(value in classes[name] for name in fold) ** 2 for fold in (one, other)) / total
            for value, total in totals.items()
        )

    one, other = (set(fold) for fold in names(split_folds(cases, 2, seed, classes)))
    here = unevenness(one, other)
    for a in one:
        for b in other:
            assert unevenness(one - {a} | {b}, other - {b} | {a}) >= here - 1e-6


def test_one_patient_cannot_be_split_and_the_remedy_is_possible():
    with pytest.raises(
        DataError, match=r"1 patient \(1 cases\) .* 2 folds; add patients, or set dataset.fold to"
    ):
        split_folds([Case("a", (Path("a.nii"),), Path("l.nii"))], 2, 0)
