"""Cases by site: the hospital or scanner that a dataset's manifest says they come from."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar

from medseg_brn.errors import DataError

MOST_NAMED = 5


class HasSite(Protocol):
    """A case, prepared or not."""

    @property
    def name(self) -> str:
        """The case's."""

    @property
    def site(self) -> str | None:
        """Where it was scanned; None where nothing says so."""


AnyCase = TypeVar("AnyCase", bound=HasSite)


def group_by_site(cases: Sequence[AnyCase], option: str) -> dict[str, list[AnyCase]]:
    """Returns site -> its cases; the sites are sorted, their cases in the given order.

    Args:
        cases: at least one.
        option: the option that needs the sites, for messages: `patches.sites=pure`.

    Raises:
        DataError: a case names no site.
    """
    groups: dict[str, list[AnyCase]] = defaultdict(list)
    for case in cases:
        if case.site is not None:
            groups[case.site].append(case)
    lacking = [case.name for case in cases if case.site is None]
    if lacking:
        raise DataError(
            f"{option} needs the site of every case, and {len(lacking)} of {len(cases)} name none "
            f"({name_some(lacking)}); use a CSV manifest as dataset.path, with the site of each case in its "
            "column 'site', or leave the option at its default"
        )
    return dict(sorted(groups.items()))


def name_some(names: Sequence[str]) -> str:
    """Returns the first names, and how many there are besides."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
