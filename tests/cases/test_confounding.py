"""Datasets in which sites and labels cannot be told apart are found, and no others."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medseg_brn.cases.checking import check_dataset
from medseg_brn.cases.confounding import (
    compute_cramers_v,
    count_by_site,
    find_confounding,
    is_determined,
)
from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.phantom import make_phantom

Maker = Callable[..., Path]

COHORTS = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=14)


def spread(**sites: str) -> tuple[list[str], list[bool]]:
    """Returns sites and presence of cases told as site="++-": one sign a case."""
    pairs = [(site, sign == "+") for site, signs in sites.items() for sign in signs]
    return [site for site, _ in pairs], [present for _, present in pairs]


def find(**sites: str) -> list[str]:
    """Returns the messages about one structure."""
    names, present = spread(**sites)
    return [problem.message for problem in find_confounding(names, {"tumour": present})]


# ---------------------------------------------------------------- the rank


@pytest.mark.parametrize(
    ("sites", "determined"),
    [
        ({"a": "++", "b": "--"}, True),
        ({"a": "++", "b": "-+"}, False),
        ({"a": "+-", "b": "+-"}, False),
        ({"a": "+++", "b": "--", "c": "++++"}, True),
        ({"a": "+++", "b": "--", "c": "+++-"}, False),
        ({"a": "+", "b": "-"}, True),
    ],
)
def test_designs_that_can_be_judged_by_eye(sites: dict[str, str], determined: bool) -> None:
    assert is_determined(*spread(**sites)) is determined


@given(COHORTS)
def test_the_rank_says_what_a_search_finds(cohort: list[tuple[str, bool]]) -> None:
    sites, present = [site for site, _ in cohort], [one for _, one in cohort]
    found = all(len({one for name, one in cohort if name == site}) == 1 for site in sites)
    assert is_determined(sites, present) is found


def test_shares_are_counted_and_sorted() -> None:
    counts = count_by_site(*spread(a="--", b="+-+", c="++"))
    assert [(one.site, one.present, one.cases) for one in counts] == [("c", 2, 2), ("b", 2, 3), ("a", 0, 2)]


# ---------------------------------------------------------------- the association


def test_the_association_by_hand() -> None:
    """19 and 1 of 20 each: φ = (19·19 - 1·1)/(20·20) = .9, and corrected with n - 1 = 39

    (φ² - 1/39)/(1 - 1/39) = (.81·39 - 1)/38 = .805, of which V is the root.
    """
    assert compute_cramers_v(*spread(a="+" * 19 + "-", b="-" * 19 + "+")) == pytest.approx(0.805**0.5)


def test_what_is_independent_has_no_association() -> None:
    assert compute_cramers_v(*spread(a="+-" * 5, b="+-" * 9)) == 0


@given(COHORTS)
def test_an_association_is_a_share(cohort: list[tuple[str, bool]]) -> None:
    value = compute_cramers_v([site for site, _ in cohort], [one for _, one in cohort])
    assert math.isnan(value) or 0 <= value <= 1 + 1e-12


@given(st.integers(2, 30), st.integers(2, 30))
def test_perfect_confounding_is_an_association_of_one(first: int, second: int) -> None:
    assert compute_cramers_v(*spread(a="+" * first, b="-" * second)) == pytest.approx(1)


def test_many_small_sites_are_associated_with_nothing_by_chance() -> None:
    rng = np.random.default_rng(0)
    sites = [f"s{index // 2}" for index in range(80)]
    values = [compute_cramers_v(sites, (rng.random(80) < 0.5).tolist()) for _ in range(200)]
    assert np.mean(values) < 0.2  # uncorrected it would be about sqrt(39/79) = .7
    assert max(values) < 0.8


# ---------------------------------------------------------------- the warnings


def test_a_confounded_structure_is_told_with_sites_and_numbers() -> None:
    (message,) = find(north="+" * 12, valley="-" * 10)
    assert message.startswith(
        "Sites and labels are confounded: 'tumour' is in all 12 cases of site 'north' and in none of the 10 "
        "cases of site 'valley'."
    )


def test_several_sites_on_a_side_are_counted_each() -> None:
    (message,) = find(north="++", valley="---", harbour="+++")
    assert (
        "in all 5 cases of the sites 'harbour' (3) and 'north' (2) and in none of the 3 cases of" in message
    )


def test_the_remedy_names_what_is_missing_and_where() -> None:
    sites, present = spread(north="++", valley="--")
    (problem,) = find_confounding(sites, {"tumour": present})
    assert (problem.case, problem.severity) == ("", "warning")
    assert problem.remedy.startswith("Add scans without it from 'north', or with it from 'valley';")


@pytest.mark.parametrize(
    "sites",
    [
        {"only": "++--"},
        {"a": "+++", "b": "+++"},
        {"a": "---", "b": "---"},
        {"a": "++-", "b": "---"},
        {"a": "+", "b": "-", "c": "+"},
        {"a": "++++", "b": "-"},
        {},
    ],
    ids=["one site", "all", "none", "one site has both", "one case a site", "one case at b", "no case"],
)
def test_no_false_alarm(sites: dict[str, str]) -> None:
    assert find(**sites) == []


def test_cases_without_a_site_do_not_count() -> None:
    assert find_confounding([None] * 4, {"tumour": [True, True, False, False]}) == []
    sites = ["a", "a", None, "b", "b", None]
    (problem,) = find_confounding(sites, {"tumour": [True, True, False, False, False, True]})
    assert "all 2 cases of site 'a' and in none of the 2 cases of site 'b'" in problem.message


def test_structures_of_the_same_cases_share_a_warning() -> None:
    sites, present = spread(a="++", b="--")
    absent = [not one for one in present]
    both = find_confounding(sites, {"tumour": present, "brain": [True] * 4, "edema": present, "cyst": absent})
    assert ["'tumour' and 'edema' are in all" in both[0].message, "'cyst' is in all" in both[1].message] == [
        True,
        True,
    ]
    assert len(both) == 2
    assert "without them from 'a'" in both[0].remedy


def test_of_many_names_the_first_are_told() -> None:
    sites, present = spread(a="++", b="--")
    (problem,) = find_confounding(sites, {f"organ {n}": present for n in range(30)})
    assert "'organ 5' and 24 more are in all" in problem.message
    assert "'organ 6'" not in problem.message


def test_few_exceptions_are_told_as_such() -> None:
    (message,) = find(north="+" * 19 + "-", valley="-" * 18 + "++")
    assert "nearly confounded (Cramér's V 0.85)" in message
    assert "19 of 20 cases of site 'north' and 2 of 20 cases of site 'valley'" in message
    assert "Only 3 cases can tell" in message


@pytest.mark.parametrize(
    "sites",
    [{"a": "+" * 8 + "-", "b": "-" * 30}, {"a": "+" * 17 + "---", "b": "-" * 17 + "+++"}],
    ids=["8 cases", "V of .7"],
)
def test_few_cases_and_weaker_associations_are_not(sites: dict[str, str]) -> None:
    assert find(**sites) == []


@given(COHORTS)
def test_a_warning_is_raised_where_a_search_finds_one(cohort: list[tuple[str, bool]]) -> None:
    by_site = {site: [one for name, one in cohort if name == site] for site, _ in cohort}
    groups = [ones for ones in by_site.values() if len(ones) > 1]
    pure = all(len(set(ones)) == 1 for ones in groups)
    differ = len({ones[0] for ones in groups}) == 2
    sites, present = [site for site, _ in cohort], [one for _, one in cohort]
    assert bool(find_confounding(sites, {"tumour": present})) is (pure and differ)


@given(COHORTS, st.randoms())
def test_the_order_of_cases_does_not_matter(cohort: list[tuple[str, bool]], random) -> None:  # type: ignore[no-untyped-def]
    assume(cohort)
    shuffled = random.sample(cohort, len(cohort))
    first, second = (
        find_confounding([site for site, _ in rows], {"tumour": [one for _, one in rows]})
        for rows in (cohort, shuffled)
    )
    assert first == second


# ---------------------------------------------------------------- in `check`


@pytest.fixture
def write_manifest(make_decathlon: Maker, write_nifti: Callable, make_label_map: Callable) -> Maker:
    """Six cases as a manifest with sites; 'right' is in those given."""

    def write(sites: str, having: tuple[int, ...]) -> Path:
        folder = make_decathlon(cases=6)
        rows = ["case,image,label,site"]
        for n, site in enumerate(sites):
            values = (1, 2) if n in having else (1,)
            write_nifti(folder / "labelsTr" / f"p{n}.nii.gz", make_label_map(values))
            rows.append(f"p{n},imagesTr/p{n}.nii.gz,labelsTr/p{n}.nii.gz,{site.strip()}")
        (folder / "cohort.csv").write_text("\n".join(rows))
        return folder / "cohort.csv"

    return write


def test_check_warns_of_a_confounded_dataset(write_manifest: Maker) -> None:
    (problem,) = check_dataset(read_dataset(write_manifest("aaabbb", (3, 4, 5))))
    assert (problem.case, problem.severity) == ("", "warning")
    assert "'class_2' is in all 3 cases of site 'b' and in none of the 3 cases of site 'a'" in problem.message


@pytest.mark.parametrize(
    ("sites", "having"),
    [("aaabbb", (2, 3, 4)), ("ababab", (0, 1, 2)), ("aaaaaa", (3, 4)), ("      ", (3, 4))],
)
def test_check_is_silent_otherwise(write_manifest: Maker, sites: str, having: tuple[int, ...]) -> None:
    assert check_dataset(read_dataset(write_manifest(sites, having))) == []


def test_label_maps_that_cannot_be_read_do_not_count(write_manifest: Maker) -> None:
    manifest = write_manifest("aaabbb", (0, 3, 4, 5))
    (manifest.parent / "labelsTr" / "p0.nii.gz").write_text("no label map")
    error, warning = sorted(check_dataset(read_dataset(manifest)), key=lambda problem: problem.severity)
    assert error.case == "p0"
    assert "none of the 2 cases of site 'a'" in warning.message


@pytest.mark.parametrize("modality", ["mri", "ct"])
def test_the_phantom_is_not_confounded(tmp_path: Path, modality: str) -> None:
    """Sites take turns, and one head in twenty has no lesion."""
    folder = make_phantom(tmp_path / modality, modality=modality, cases=24, voxel_mm=8.0)  # type: ignore[arg-type]
    dataset = read_dataset(folder, layout="csv")
    assert len({case.site for case in dataset.cases}) == 4
    assert [problem.message for problem in check_dataset(dataset) if "Sites" in problem.message] == []
