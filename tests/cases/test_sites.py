"""Cases grouped by their site, and what a case without one is told."""

from pathlib import Path

import pytest

from medseg_brn.cases.case import Case
from medseg_brn.cases.sites import group_by_site
from medseg_brn.errors import DataError


def make_cases(*sites: str | None) -> list[Case]:
    return [Case(f"c{number}", (Path("image.nii"),), site=site) for number, site in enumerate(sites)]


def test_sites_are_sorted_and_their_cases_keep_their_order():
    groups = group_by_site(make_cases("B", "A", "B"), "an option")
    assert list(groups) == ["A", "B"]
    assert {site: [case.name for case in own] for site, own in groups.items()} == {
        "A": ["c1"],
        "B": ["c0", "c2"],
    }


def test_cases_without_a_site_are_named_with_the_remedy():
    with pytest.raises(DataError) as caught:
        group_by_site(make_cases("A", *[None] * 7), "patches.sites=pure")
    message = str(caught.value)
    assert message.startswith("patches.sites=pure needs the site of every case, and 7 of 8 name none")
    assert "(c1, c2, c3, c4, c5 and 2 more)" in message and "column 'site'" in message
