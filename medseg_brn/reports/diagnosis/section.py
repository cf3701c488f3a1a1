"""The diagnosis of a run: findings by weight, what was measured, pictures of the cases that stand out."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medseg_brn.probes.curves import find_spikes
from medseg_brn.reports.case_overlays import show_cases
from medseg_brn.reports.diagnosis import cases, course
from medseg_brn.reports.diagnosis.finding import WORDS, Finding, order_findings
from medseg_brn.reports.page import Block, Column, Facts, Paragraph, Table
from medseg_brn.reports.run_record import RunRecord
from medseg_brn.volumes.atomic import write_text_atomic

MOST_PICTURES = 4


def diagnose(run: RunRecord, suspects: Sequence[cases.Suspect]) -> tuple[Finding, ...]:
    """Everything suspicious in a run's records, the weightiest first.

    Args:
        run: what was recorded.
        suspects: what `find_suspects` found in it, here and below.
    """
    metrics, experiment = run.metrics, run.experiment
    return order_findings(
        [
            *course.check_divergence(run.divergence),
            *course.check_learning(metrics),
            *cases.check_classes(
                cases.share_classes(run.patches, run.class_names), len(run.patches), experiment.patches
            ),
            *cases.check_held_out(run.evaluation),
            *course.check_fit(run.fit),
            *cases.check_suspects(suspects),
            *course.check_spikes(metrics, run.patches),
            *course.check_loading(metrics, experiment),
            *course.check_trend(metrics, experiment),
            *course.check_gradients(metrics, experiment),
            *course.check_renorm(run.folder / "probes.csv", experiment),
        ]
    )


def write_diagnosis(run: RunRecord, findings: Sequence[Finding], suspects: Sequence[cases.Suspect]) -> None:
    """Write `diagnosis.json`: the findings, the classes' shares, and the suspects."""
    content = {
        "findings": [finding.as_dict() for finding in findings],
        "classes": [asdict(share) for share in cases.share_classes(run.patches, run.class_names)],
        "annotated_share": cases.annotated_share(run.patches, len(run.class_names)),
        "suspects": [asdict(suspect) for suspect in suspects],
        "measured": measure(run),
    }
    write_text_atomic(run.folder / "diagnosis.json", json.dumps(content, indent=1) + "\n")


def describe_diagnosis(
    run: RunRecord, findings: Sequence[Finding], suspects: Sequence[cases.Suspect]
) -> list[Block]:
    """Blocks of the report's section."""
    blocks: list[Block] = []
    if not findings and run.metrics["step"].size:
        blocks.append(Paragraph("Nothing suspicious was found in the records of this run."))
    if findings:
        rows = [[WORDS[f.weight], f.what, f.numbers, f.remedy] for f in findings]
        headings = ("Weight", "What was found", "Numbers", "What to do")
        blocks.append(Table("Weightiest first.", [Column(heading) for heading in headings], rows))
    if run.metrics["step"].size:
        blocks.append(Facts("What was measured", _say_measured(run)))
    shares = cases.share_classes(run.patches, run.class_names)
    if shares:
        blocks.append(_make_class_table(run, shares))
    return [*blocks, *_draw_suspects(run, suspects), *_draw_worst(run)]


def measure(run: RunRecord) -> dict[str, float | str | None]:
    """The numbers that the checks looked at, suspicious or not; None for what a run has no records of."""
    metrics, loss = run.metrics, run.metrics["loss"]
    what, gain = course.describe_trend(metrics)
    dice = {group: course.known_values(run.fit.get(group, {})) for group in ("training", "held_out")}
    measured: dict[str, float | str | None] = {
        "steps": loss.size,
        "loader_share": course.share_waiting(metrics),
        "gradient_clipped_share": course.share_clipped(metrics, run.experiment),
        "loss_spikes": int(find_spikes(loss).sum()),
        "last_quarter_of": what,
        "last_quarter_gain": gain,
        "renorm_clipped_share": course.read_renorm_clipping(run.folder / "probes.csv", run.experiment),
        "annotated_share": cases.annotated_share(run.patches, len(run.class_names)),
        "dice_training": float(dice["training"].mean()) if dice["training"].size else None,
        "dice_held_out": float(dice["held_out"].mean()) if dice["held_out"].size else None,
    }
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in measured.items()
    }


def _say_measured(run: RunRecord) -> dict[str, str]:
    """`measure` in words."""
    measured = measure(run)
    facts = {"Pace": course.describe_loading(run.metrics, run.experiment)}
    limit = run.experiment.training.gradient_clip
    if limit is not None:
        share = measured["gradient_clipped_share"]
        facts["Gradient clipped"] = f"at {share:.1%} of the steps after warm-up (norm above {limit:g})"
    facts["Loss spikes"] = f"{measured['loss_spikes']} of {measured['steps']} steps"
    gain, what = float(measured["last_quarter_gain"] or 0), measured["last_quarter_of"]
    change = f"{abs(gain):.1%} {'better' if gain > 0 else 'worse'}" if gain else "without a clear change"
    facts["Last quarter of the steps"] = f"{what} {change}"
    for key, name in (("training", "Dice of training cases"), ("held_out", "Dice of held-out cases")):
        if measured[f"dice_{key}"] is not None:
            count = len(course.known_values(run.fit[key]))
            facts[name] = f"{measured[f'dice_{key}']:.3f}, mean of {count} on the network's grid"
    if measured["renorm_clipped_share"] is not None:
        share = measured["renorm_clipped_share"]
        facts["Renorm clipped"] = f"{share:.1%} of the channels since the limits were widest"
    if measured["annotated_share"] != 1:
        share = measured["annotated_share"]
        facts["Annotated"] = f"{share:.1%} of the patches' voxels; the rest is ignored"
    return facts


def _make_class_table(run: RunRecord, shares: Sequence[cases.ClassShare]) -> Table:
    first = run.patches[0].step
    since = "" if first == 1 else f", recorded from step {first} on"
    return Table(
        f"What the {len(run.patches)} recorded training patches contained{since}.",
        [
            Column("Class"),
            Column("Patches", "d"),
            Column("Share of patches", ".2%"),
            Column("Share of voxels", ".3%"),
        ],
        [[share.name, share.patches, share.patch_share, share.voxel_share] for share in shares],
    )


def _draw_suspects(run: RunRecord, suspects: Sequence[cases.Suspect]) -> list[Block]:
    """The suspects' own label maps, and what the model says instead."""
    losses = {suspect.case: suspect for suspect in suspects}
    pictures = [
        (f"Suspect training case {entry['case']}, late loss {losses[entry['case']].loss:.3g}", entry)
        for entry in run.suspects
        if entry["case"] in losses
    ]
    text = "Suspect training cases: reference and prediction disagree though the case was trained on."
    return _show(run, text, pictures)


def _draw_worst(run: RunRecord) -> list[Block]:
    """The hard held-out cases; where none stands out, the worst three of at least four."""
    hard = cases.find_hard_cases(run.evaluation)[:MOST_PICTURES]
    ranked = cases.rank_held_out(run.evaluation)
    chosen = hard or (ranked[:3] if len(ranked) > 3 else [])
    pictures = [(f"Held-out case {case['case']}, mean Dice {dice:.3f}", case) for dice, case in chosen]
    text = "Held-out cases that stand out:" if hard else "The worst held-out cases, none of which stands out:"
    return _show(run, text, pictures)


def _show(run: RunRecord, text: str, pictures: Sequence[tuple[str, dict[str, Any]]]) -> list[Block]:
    """Overlays through the slices where reference and prediction differ most."""
    shown = show_cases(pictures, run.locate, run.split.get("ignore_value"), through="difference")
    return [Paragraph(text), *shown] if shown else []
