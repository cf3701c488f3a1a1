"""The report of a study: its claims as they were stated, what was measured, and which of them hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_brn.errors import DataError
from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Facts,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    write_page,
)

SUMMARY_NAME = "summary.json"
VERDICTS = {True: "holds", False: "does not hold", None: "not settled"}


def write_study_report(folder: Path, sections: Sequence[Section]) -> None:
    """Writes `report.html` beside a study's `summary.json`, whole or not at all.

    Args:
        folder: of the study.
        sections: its pictures and tables, which follow the claims.

    Raises:
        DataError: there is no `summary.json`, or it is damaged.
    """
    path = folder / SUMMARY_NAME
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        claims, title, question = (summary[key] for key in ("claims", "title", "question"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); run the study again") from None
    page = Page(
        title,
        question,
        [
            Section("Claims", _describe_claims(claims)),
            *sections,
            Section("Settings", [Facts("What the numbers were obtained with", _tell(summary["settings"]))]),
        ],
    )
    write_page(page, folder / "report.html")


def _describe_claims(claims: Sequence[Mapping[str, Any]]) -> list[Block]:
    counts = {told: sum(claim["holds"] is verdict for claim in claims) for verdict, told in VERDICTS.items()}
    rows: list[list[Cell]] = [
        [
            claim["name"],
            claim["expected"],
            tell_number(claim["measured"]),
            tell_interval(claim["interval"]),
            VERDICTS[claim["holds"]],
            claim["note"],
        ]
        for claim in claims
    ]
    columns = [
        Column(heading)
        for heading in ("Claim", "Stated beforehand", "Measured", "95 % interval", "Verdict", "Note")
    ]
    explanation = (
        "Each claim was written down, with its bound, before anything was measured. It holds where the whole "
        "95 % interval lies on the stated side of the bound, does not hold where none of it does, and is not "
        "settled in between. A claim that does not hold is a finding, not a failure of the study."
    )
    return [
        Tiles([Tile(told, str(count), f"of {len(claims)} claims") for told, count in counts.items()]),
        Paragraph(explanation),
        Table("What was claimed, and what came out", columns, rows),
    ]


def tell_number(value: float | None) -> str:
    """Three significant digits; a dash for what does not exist."""
    return "–" if value is None else f"{value:.3g}"


def tell_interval(interval: Sequence[float] | None) -> str:
    """Two numbers of three significant digits; a dash where there is no interval."""
    return "–" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def _tell(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in settings.items()
    }
