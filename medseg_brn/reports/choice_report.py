"""The report of a choice among cross-validations: how they compare, and what the chosen one is like."""

import json
from pathlib import Path

from medseg_brn.errors import DataError
from medseg_brn.reports.cross_validation_report import describe_postprocessing, say_interval
from medseg_brn.reports.evaluation_blocks import make_class_table
from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    write_page,
)


def write_choice_report(folder: Path) -> None:
    """Writes `choice.html` beside a `choice.json`, whole or not at all.

    Raises:
        DataError: there is no `choice.json`, or it is damaged.
    """
    path = folder / "choice.json"
    try:
        choice = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run medseg-brn models choose again") from None
    names = list(choice["summary"]["classes"])
    columns = [Column("Candidate"), Column("Mean Dice", ".4f"), Column("Difference", "+.4f")]
    columns += [Column("95 % interval"), Column("Networks", "d"), Column("Weights (MB)", ".1f")]
    columns += [Column(f"{name}: Dice", ".3f") for name in names]
    rows: list[list[Cell]] = [
        [
            f"{row['name']} (chosen)" if row["name"] == choice["chosen"] else row["name"],
            row["dice_mean"],
            row["from_best"]["difference"],
            say_interval(row["from_best"]["interval"]),
            row["networks_per_fold"],
            row["weights_bytes_per_fold"] / 1e6,
            *(row["classes"].get(name) for name in names),
        ]
        for row in choice["candidates"]
    ]
    caption = (
        f"Mean Dice of {choice['cases']} cases, each segmented by models that had not seen it (per structure "
        "over cases, then over structures); difference from the best, with the interval of a bootstrap "
        "paired over cases. Networks and weights are those of one fold."
    )
    blocks: list[Block] = [Paragraph(choice["reason"]), Table(caption, columns, rows)]
    blocks += [
        Paragraph(f"Not averaged: {name}, because {reason}.")
        for name, reason in choice["not_averaged"].items()
    ]
    after = choice["postprocessed"]
    measured: list[Block] = [make_class_table(choice)]
    if after is not None:
        told = "mean Dice; the rules were chosen on these same cases, so that new ones gain less"
        measured.append(Tiles([Tile("With post-processing", f"{after['dice_mean']:.3f}", told)]))
    sections = [
        Section("Candidates", blocks),
        Section("Post-processing", describe_postprocessing(choice["postprocessing"])),
        Section("The chosen one, structure by structure", measured),
    ]
    page = Page(
        f"Chosen: {choice['chosen']}",
        "Configurations compared by cross-validation. The simplest is taken of those whose mean Dice is "
        f"surely no more than {choice['margin']:g} below the best one's.",
        sections,
    )
    write_page(page, folder / "choice.html")
