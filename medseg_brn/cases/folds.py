"""Cross-validation folds: one seeded permutation, patients whole, sites spread evenly."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from medseg_brn.cases.case import Case
from medseg_brn.errors import DataError


def split_folds(cases: Sequence[Case], folds: int, seed: int) -> list[list[Case]]:
    """Returns the cases in `folds` disjoint groups whose numbers of patients differ by at most one.

    With n cases sorted by name, fold f is entry f of
    `np.array_split(np.random.default_rng(seed).permutation(n), folds)`. Cases that share a `patient` stay
    together: the patients, ordered by their first case, are permuted instead. Where cases name several
    sites, each site's patients are permuted, site after site, and dealt to the folds in turn, so that
    every site is spread as evenly as it can be.

    Args:
        cases: in any order; the result does not depend on it.
        folds: at least 2 and at most the number of patients.
        seed: the experiment's seed.

    Raises:
        DataError: two cases share a name, or there are fewer patients than folds.
    """
    patients = _group_by_patient(cases)
    if not 2 <= folds <= len(patients):
        raise DataError(
            f"{len(patients)} patients ({len(cases)} cases) cannot be split into {folds} folds; set "
            f"dataset.folds between 2 and {len(patients)}, or dataset.fold to null to train on every case."
        )
    rng = np.random.default_rng(seed)
    sites = _group_by_site(patients)
    if len(sites) == 1:
        chosen = np.array_split(rng.permutation(len(patients)), folds)
    else:
        dealt = np.concatenate([rng.permutation(members) for _, members in sorted(sites.items())])
        chosen = [dealt[fold::folds] for fold in range(folds)]
    return [[case for index in fold for case in patients[index]] for fold in chosen]


def _group_by_patient(cases: Sequence[Case]) -> list[list[Case]]:
    """Returns the patients' cases, both ordered by case name. A case without a patient is one by itself."""
    patients: dict[tuple[str, str], list[Case]] = defaultdict(list)
    previous = None
    for case in sorted(cases, key=lambda case: case.name):
        if case.name == previous:
            raise DataError(f"Two cases are named {case.name!r}; give every case a name of its own.")
        previous = case.name
        patients[("case", case.name) if case.patient is None else ("patient", case.patient)].append(case)
    return list(patients.values())


def _group_by_site(patients: list[list[Case]]) -> dict[str, list[int]]:
    """Returns site -> indices of its patients; a patient seen at several sites counts as its first case's."""
    sites: dict[str, list[int]] = defaultdict(list)
    for index, cases in enumerate(patients):
        sites[cases[0].site or ""].append(index)
    return sites
