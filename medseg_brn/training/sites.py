"""Where an experiment asks for the sites of its cases: folds, turns of patches, domain-specific norms."""

from collections.abc import Sequence

from medseg_brn.cases.dataset import Case, Dataset
from medseg_brn.cases.folds import split_by_site
from medseg_brn.cases.sites import HasSite, group_by_site
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError

BY_DOMAIN = "domain_batch"


def check_sites(experiment: Experiment, cases: Sequence[HasSite]) -> None:
    """Find out before hours of preparing whether all training cases name the site that an option asks for.

    Raises:
        DataError: one does not.
    """
    if experiment.patches.sites != "any":
        group_by_site(cases, f"patches.sites={experiment.patches.sites}")
    list_norm_sites(experiment, cases)


def list_norm_sites(experiment: Experiment, training: Sequence[HasSite]) -> tuple[str, ...]:
    """The sites of the training cases, sorted, where the norm has statistics of each; else none.

    Raises:
        DataError: the norm has, and a case names no site.
    """
    if experiment.network.norm != BY_DOMAIN:
        return ()
    return tuple(group_by_site(training, f"network.norm={BY_DOMAIN}"))


def list_fold_sites(experiment: Experiment, dataset: Dataset) -> tuple[str, ...]:
    """The site that each fold holds out, in the order of the folds; none where folds go by patients.

    Raises:
        DataError: folds go by sites, and the labelled cases cannot be split so.
    """
    return tuple(split_by_site(dataset.labelled_cases)) if experiment.dataset.folds_by == "site" else ()


def hold_out_site(experiment: Experiment, labelled: Sequence[Case]) -> list[Case]:
    """The cases of the site that the experiment's fold holds out.

    Raises:
        ConfigError: there are fewer sites.
        DataError: the cases cannot be split by site.
    """
    sites = split_by_site(labelled)
    fold = experiment.dataset.fold
    if fold is None or fold >= len(sites):
        numbered = ", ".join(f"{number} ({site})" for number, site in enumerate(sites))
        raise ConfigError(
            f"dataset.fold is {fold}, and with dataset.folds_by=site there is a fold for each of the "
            f"{len(sites)} sites: {numbered}; choose one of these"
        )
    return list(sites.values())[fold]


def name_held_out_site(experiment: Experiment, held_out: Sequence[HasSite]) -> str | None:
    """The site that the fold holds out; None where folds go by patients, or nothing is held out."""
    return held_out[0].site if experiment.dataset.folds_by == "site" and held_out else None
