"""Whether a dataset can tell its labels from its sites.

Where one site sent the patients with tumours and another the healthy controls, whatever tells the two sites'
scanners apart tells the labels too: training may learn either, and no figure from such data says which.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.cases.case import Problem

NEARLY = 0.8
"""Cramér's V above which an association that has exceptions is told."""
ENOUGH_CASES = 10
"""With and without a structure each, that an association with exceptions must rest on."""
MOST_LISTED = 6


@dataclass(frozen=True)
class SiteCount:
    """How many of a site's cases have a structure."""

    site: str
    present: int
    cases: int


def find_confounding(sites: Sequence[str | None], presence: Mapping[str, Sequence[bool]]) -> list[Problem]:
    """Returns a warning for each structure whose presence the site determines, or nearly does.

    Cases without a site do not count, nor do sites of one case, which cannot have both kinds. Structures that
    all cases have, or none, are not confounded with anything. Those in the same cases share a warning.

    Args:
        sites: of each case.
        presence: structure -> whether each case has it.
    """
    sizes = {site: sites.count(site) for site in set(sites) - {None}}
    counted = [index for index, site in enumerate(sites) if sizes.get(site, 0) > 1]
    named = [site for index in counted if (site := sites[index]) is not None]
    if len(set(named)) < 2:
        return []
    structures: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for name, present in presence.items():
        structures[tuple(bool(present[index]) for index in counted)].append(name)
    problems = [_judge(names, named, present) for present, names in structures.items()]
    return [problem for problem in problems if problem is not None]


def is_determined(sites: Sequence[str], present: Sequence[bool]) -> bool:
    """Returns whether the site determines what is present: all cases of each site have it, or none.

    Then the group is a sum of columns of the design, and no model has an effect of the group beside one of
    the batch: rank [1 | group | batch] = rank [1 | batch].
    """
    rows = sorted(set(zip(sites, map(bool, present), strict=True)))  # repeated rows leave the rank as it is
    batch = np.array([[site == name for name in sorted(set(sites))] for site, _ in rows], float)
    batch = np.hstack([np.ones((len(rows), 1)), batch])
    group = np.array([[one] for _, one in rows], float)
    rank = np.linalg.matrix_rank
    return bool(rank(np.hstack([group, batch])) == rank(batch))


def compute_cramers_v(sites: Sequence[str], present: Sequence[bool]) -> float:
    """Returns how strongly site and presence are associated: 0 independent, 1 one determines the other.

    Corrected for chance, which associates anything with many small sites (Bergsma 2013, "A bias-correction
    for Cramér's V and Tschuprow's T"). NaN where there is one site only, or all or none have it.
    """
    counts = count_by_site(sites, present)
    table = np.array([(one.present, one.cases - one.present) for one in counts], float)
    total, rows = table.sum(), len(table)
    expected = table.sum(1, keepdims=True) * table.sum(0) / total
    if rows < 2 or not expected.all():
        return float("nan")
    excess = ((table - expected) ** 2 / expected).sum() / total - (rows - 1) / (total - 1)
    fewest = min(rows - (rows - 1) ** 2 / (total - 1), 2 - 1 / (total - 1)) - 1
    return float(np.sqrt(max(excess, 0) / fewest)) if fewest > 0 else float("nan")


def count_by_site(sites: Sequence[str], present: Sequence[bool]) -> list[SiteCount]:
    """Returns the counts of each site, those with the largest share first."""
    having = defaultdict(list)
    for site, one in zip(sites, present, strict=True):
        having[site].append(bool(one))
    counts = [SiteCount(site, sum(ones), len(ones)) for site, ones in having.items()]
    return sorted(counts, key=lambda one: (-one.present / one.cases, one.site))


# ---------------------------------------------------------------- in words


def _judge(names: Sequence[str], sites: Sequence[str], present: Sequence[bool]) -> Problem | None:
    if all(present) or not any(present):
        return None
    if is_determined(sites, present):
        return _warn_of_all(names, count_by_site(sites, present))
    enough = min(sum(present), len(present) - sum(present)) >= ENOUGH_CASES
    if enough and (association := compute_cramers_v(sites, present)) > NEARLY:
        return _warn_of_most(names, count_by_site(sites, present), association)
    return None


def _warn_of_all(names: Sequence[str], counts: Sequence[SiteCount]) -> Problem:
    having = [one for one in counts if one.present]
    lacking = [one for one in counts if not one.present]
    what = _list([repr(name) for name in names])
    it, be = ("them", "are") if len(names) > 1 else ("it", "is")
    message = (
        f"Sites and labels are confounded: {what} {be} in all {_tell(having)} and in none of the "
        f"{_tell(lacking)}. Training may learn the site instead, and no figure from these cases tells the "
        "two apart, not even by leaving a site out."
    )
    remedy = (
        f"Add scans without {it} from {_name(having)}, or with {it} from {_name(lacking)}; otherwise claim "
        f"nothing that rests on cases with {it} against cases without."
    )
    return Problem("", message, remedy, "warning")


def _warn_of_most(names: Sequence[str], counts: Sequence[SiteCount], association: float) -> Problem:
    what = _list([repr(name) for name in names])
    it, be = ("them", "are") if len(names) > 1 else ("it", "is")
    shares = _list([f"{one.present} of {one.cases} cases of site {one.site!r}" for one in counts])
    against = sum(min(one.present, one.cases - one.present) for one in counts)
    message = (
        f"Sites and labels are nearly confounded (Cramér's V {association:.2f}): {what} {be} in {shares}. "
        f"Only {against} case{'s' * (against != 1)} can tell {it} from the site."
    )
    remedy = (
        f"Evaluate each site by itself too, and add scans with {it} from sites that mostly lack {it}, or "
        f"without {it} from those that mostly have {it}."
    )
    return Problem("", message, remedy, "warning")


def _tell(counts: Sequence[SiteCount]) -> str:
    cases = sum(one.cases for one in counts)
    if len(counts) == 1:
        return f"{cases} cases of site {counts[0].site!r}"
    return f"{cases} cases of the sites {_list([f'{one.site!r} ({one.cases})' for one in counts])}"


def _name(counts: Sequence[SiteCount]) -> str:
    return _list([repr(one.site) for one in counts])


def _list(told: Sequence[str]) -> str:
    """Returns "a, b and c"; of many the first ones, and how many more there are."""
    if len(told) > MOST_LISTED + 1:
        told = [*told[:MOST_LISTED], f"{len(told) - MOST_LISTED} more"]
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
