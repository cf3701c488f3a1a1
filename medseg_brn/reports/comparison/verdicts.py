"""What the tests of a comparison allow to say, in words and as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medseg_brn.reports.comparison.record import (
    ComparisonRecord,
    as_interval,
    as_number,
    finite_or_none,
)
from medseg_brn.reports.comparison.texts import BETTER, QUESTIONS, VERDICTS, say_input
from medseg_brn.reports.page import Block, Column, Paragraph, Table

NOT_DISTINGUISHABLE = "not distinguishable"
MOST_TOLD = 3
"""Verdicts told in words for each question; the others stand in the table."""


def conclude(record: ComparisonRecord) -> list[Block]:
    """One paragraph per measure that was tested, and one on what remains open."""
    verdicts = record.verdicts
    if not verdicts:
        return [Paragraph("No claim was tested, so nothing is concluded here beyond the figures below.")]
    clear = [verdict for verdict in verdicts if _is_clear(verdict)]
    blocks: list[Block] = [
        Paragraph(_tell_question(question, clear, verdicts))
        for question in dict.fromkeys(_question(verdict) for verdict in clear)
    ]
    unclear = len(verdicts) - len(clear)
    if unclear:
        seeds = f"{record.seeds} seed{'s' if record.seeds != 1 else ''}" if record.seeds else "these seeds"
        cases = f"{record.summary.get('cases', '–')} cases"
        few = " One seed cannot tell a difference between norms from luck." if record.seeds == 1 else ""
        told = (
            f"Cannot be concluded: {unclear} of {len(verdicts)} comparisons are not distinguishable with "
            if clear
            else f"Nothing is concluded: none of {len(verdicts)} comparisons is distinguishable with "
        )
        blocks.append(Paragraph(f"{told}{seeds} and {cases}.{few} That is no proof of equality."))
    return blocks


def make_verdict_table(record: ComparisonRecord) -> list[Block]:
    """Every claim that was tested."""
    if not record.verdicts:
        return []
    columns = [
        Column("Claim"),
        Column("Measure"),
        Column("Effect", "+.3g"),
        Column("From", "+.3g"),
        Column("To", "+.3g"),
        Column("p, adjusted", ".3g"),
        Column("Conclusion"),
    ]
    rows = []
    for verdict in record.verdicts:
        low, high = as_interval(verdict.get("interval"))
        numbers = map(finite_or_none, (as_number(verdict.get("effect")), low, high, _adjusted(verdict)))
        rows.append(
            [
                _text(verdict, "claim"),
                _question(verdict),
                *numbers,
                _text(verdict, "conclusion") or NOT_DISTINGUISHABLE,
            ]
        )
    return [
        Paragraph(VERDICTS),
        Table("Every claim; click a heading to sort.", columns, rows),
    ]


def _tell_question(
    question: str, clear: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> str:
    """How many comparisons of one measure are distinguishable, and the clearest of them."""
    found = [verdict for verdict in clear if _question(verdict) == question]
    asked = sum(_question(verdict) == question for verdict in verdicts)
    direction = f" ({BETTER[question]})" if question in BETTER else ""
    found.sort(key=lambda verdict: (_adjusted(verdict), -abs(as_number(verdict.get("effect")))))
    told = "; ".join(map(_tell_verdict, found[:MOST_TOLD]))
    rest = " The others stand under Verdicts." if len(found) > MOST_TOLD else ""
    verb = "is" if len(found) == 1 else "are"
    clearest = "clearest: " if len(found) > 1 else ""
    named = f"{question[:1].upper()}{question[1:]}{direction}"
    return f"{named}: {len(found)} of {asked} comparisons {verb} distinguishable; {clearest}{told}.{rest}"


def _tell_verdict(verdict: Mapping[str, Any]) -> str:
    """The two norms and what was found of them; the claim itself may have been found wrong."""
    adjusted = _adjusted(verdict)
    chance = f" (adjusted p {adjusted:.2g})" if math.isfinite(adjusted) else ""
    norm, other, size = (_text(verdict, key) for key in ("norm", "other", "batch_size"))
    subject = f"against {other}" if other else norm or _text(verdict, "claim") or "unnamed"
    subject += f" at batch size {size}" if size else ""
    subject += f", {say_input(str(verdict['input']))}" if verdict.get("input") else ""
    return f"{subject}: {_text(verdict, 'conclusion')}{chance}"


def _is_clear(verdict: Mapping[str, Any]) -> bool:
    conclusion = _text(verdict, "conclusion") or ""
    return bool(conclusion) and not conclusion.casefold().startswith(NOT_DISTINGUISHABLE)


def _question(verdict: Mapping[str, Any]) -> str:
    question = _text(verdict, "question") or "other"
    return QUESTIONS.get(question, question)


def _adjusted(verdict: Mapping[str, Any]) -> float:
    return as_number(verdict.get("p_adjusted"))


def _text(verdict: Mapping[str, Any], key: str) -> str | None:
    value = verdict.get(key)
    return None if value is None else str(value)
