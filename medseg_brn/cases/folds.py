"""Cross-validation folds: seeded, patients whole, sites and classes spread evenly; or one site in each."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from medseg_brn.cases.case import Case
from medseg_brn.cases.sites import group_by_site, name_some
from medseg_brn.errors import DataError

Labels = list[frozenset[str]]
"""What is to be spread evenly, for each patient: sites and classes that some patients have and some not."""

WEIGHT = 1_000_000_000
"""Of a label that a single patient has, in comparing folds."""


def split_folds(
    cases: Sequence[Case],
    folds: int,
    seed: int,
    classes: Mapping[str, Collection[int]] | None = None,
) -> list[list[Case]]:
    """Returns the cases in `folds` disjoint groups whose numbers of patients differ by at most one.

    With n cases sorted by name, fold f is entry f of
    `np.array_split(np.random.default_rng(seed).permutation(n), folds)`. Cases that share a `patient` stay
    together: the patients, ordered by their first case, are permuted instead. Where cases name several
    sites, each site's patients are permuted, site after site, and dealt to the folds in turn, so that
    every site is spread as evenly as it can be.

    Where some patients lack a class that others have, sites and classes are spread together, by iterative
    stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data"):
    the rarest one is dealt first, each of its patients to the fold that lacks it most. Then patients change
    places as long as that makes the folds more alike.

    Args:
        cases: in any order; the result does not depend on it.
        folds: at least 2 and at most the number of patients.
        seed: the experiment's seed.
        classes: the classes that each case has, by its name; None where all have all.

    Raises:
        DataError: two cases share a name, or there are fewer patients than folds.
    """
    patients = group_by_patient(cases)
    if not 2 <= folds <= len(patients):
        count = f"{len(patients)} patient{'s' * (len(patients) != 1)} ({len(cases)} cases)"
        remedy = f"set dataset.folds between 2 and {len(patients)}" if len(patients) > 1 else "add patients"
        raise DataError(
            f"{count} cannot be split into {folds} folds; {remedy}, or set dataset.fold to null to train on "
            "every case."
        )
    rng = np.random.default_rng(seed)
    sites = _group_by_site(patients)
    labels = _list_labels(patients, sites, classes or {})
    if any(label.startswith("class") for label in frozenset().union(*labels)):
        chosen = _improve(_stratify(labels, folds, rng), labels)
    elif len(sites) == 1:
        chosen = [part.tolist() for part in np.array_split(rng.permutation(len(patients)), folds)]
    else:
        dealt = np.concatenate([rng.permutation(members) for _, members in sorted(sites.items())]).tolist()
        chosen = [dealt[fold::folds] for fold in range(folds)]
    return [[case for index in fold for case in patients[index]] for fold in chosen]


def split_by_site(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Returns site -> its cases, which leaving one site out holds out together; both ordered by name.

    Raises:
        DataError: a case names no site, there is one site only, or a patient was seen at several, who would
            be trained on and held out at once.
    """
    patients = group_by_patient(cases)
    sites = group_by_site([case for own in patients for case in own], "dataset.folds_by=site")
    if len(sites) < 2:
        raise DataError(
            f"All {len(cases)} cases are of site {', '.join(sites)!r}, and dataset.folds_by=site holds out "
            "one of several; set it to patient, or add cases of another site."
        )
    travelled = [
        f"{own[0].patient!r} ({', '.join(f'{case.name} at {case.site}' for case in own)})"
        for own in patients
        if len({case.site for case in own}) > 1
    ]
    if travelled:
        raise DataError(
            f"Of {len(patients)} patients {len(travelled)} were seen at several sites: "
            f"{name_some(travelled)}. With dataset.folds_by=site they would be trained on and held out at "
            "once; leave out their cases at all sites but one, or set it to patient."
        )
    return {site: sorted(own, key=lambda case: case.name) for site, own in sites.items()}


def group_by_patient(cases: Sequence[Case]) -> list[list[Case]]:
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


def _list_labels(
    patients: list[list[Case]], sites: dict[str, list[int]], classes: Mapping[str, Collection[int]]
) -> Labels:
    """Returns each patient's labels: `site …` and `class …`, but those that all patients have."""
    site_of = {index: site for site, members in sites.items() for index in members}
    labels = [
        {f"site {site_of[index]}"}
        | {f"class {value}" for case in cases for value in classes.get(case.name, ())}
        for index, cases in enumerate(patients)
    ]
    shared = set.intersection(*labels)
    return [frozenset(own - shared) for own in labels]


def _stratify(labels: Labels, folds: int, rng: np.random.Generator) -> list[list[int]]:
    """Returns the patients of each fold: the algorithm of Sechidis 2011, with folds that are never too large.

    `room` and `wanted` are the paper's desired numbers of examples, in all and of each label, the latter
    times the number of folds. Sizes are whole numbers here: the first n mod k folds have one patient more.
    """
    room = [len(part) for part in np.array_split(range(len(labels)), folds)]
    totals = Counter(label for own in labels for label in own)
    wanted = {label: [total] * folds for label, total in totals.items()}
    order = rng.permutation(len(labels)).tolist()  # instead of a draw at each tie
    chosen: list[list[int]] = [[] for _ in range(folds)]
    waiting = set(order)
    while waiting:
        left = Counter(label for index in waiting for label in labels[index])
        rarest = min(left, key=lambda label: (left[label], label), default=None)
        for index in [index for index in order if index in waiting]:
            if rarest is not None and rarest not in labels[index]:
                continue
            fold = max(
                (fold for fold in range(folds) if room[fold]),
                key=lambda fold: (0 if rarest is None else wanted[rarest][fold], room[fold], -fold),
            )
            chosen[fold].append(index)
            waiting.remove(index)
            room[fold] -= 1
            for label in labels[index]:
                wanted[label][fold] -= folds
    return chosen


def _improve(chosen: list[list[int]], labels: Labels) -> list[list[int]]:
    """Returns the folds after every change of two patients' places that makes the labels' counts more even.

    What is made smaller is the sum over labels and folds of the squared counts, each label's divided by how
    many patients have it, so that a rare class counts as much as a common one. With patients' labels as
    vectors x, and the sums c of each fold, the change of places of patient i of fold f and patient j of fold
    g adds to it 2 (x_j - x_i)·(c_f - c_g) + 2 |x_j - x_i|². All numbers are integers, so that every machine
    finds the same folds.
    """
    names = sorted(frozenset().union(*labels))
    has = np.array([[name in own for name in names] for own in labels], dtype=np.int64)
    products = has * (WEIGHT // has.sum(axis=0)) @ has.T  # x_i·x_j
    squares = products.diagonal()
    overlap = np.stack([products[members].sum(axis=0) for members in chosen], axis=1)  # x_i·c_f
    fold_of = np.empty(len(labels), dtype=np.intp)
    for fold, members in enumerate(chosen):
        fold_of[members] = fold
    everyone = np.arange(len(labels))
    improved = True
    while improved:
        improved = False
        for one in everyone:
            here = fold_of[one]
            added = overlap[:, here] - overlap[everyone, fold_of] - overlap[one, here] + overlap[one, fold_of]
            added += squares + squares[one] - 2 * products[one]
            added[fold_of == here] = 0
            other = added.argmin()
            if added[other] < 0:
                moved = products[other] - products[one]
                overlap[:, here] += moved
                overlap[:, fold_of[other]] -= moved
                fold_of[[one, other]] = fold_of[[other, one]]
                improved = True
    return [np.flatnonzero(fold_of == fold).tolist() for fold in range(len(chosen))]
