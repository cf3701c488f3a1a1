"""The report of a cross-validation: every case as a model saw it that had not trained on it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_brn.errors import DataError
from medseg_brn.reports.case_overlays import show_cases
from medseg_brn.reports.evaluation_blocks import (
    make_case_table,
    make_class_table,
    make_dice_figure,
    make_tiles,
    mean_dice,
)
from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Link,
    Listing,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    write_page,
)

REPORT_NAME = "report.html"
WORST_CASES = 4
OPTIONS = {
    "keep_largest": "keep the largest piece",
    "fill_holes": "fill holes",
    "remove_below_mm3": "remove pieces below {} mm³",
}


def write_cross_validation_report(folder: Path) -> None:
    """Writes `report.html` beside a cross-validation's `summary.json`, whole or not at all.

    Raises:
        DataError: there is no `summary.json`, or it is damaged.
    """
    summary = read_summary(folder)
    sections = (
        Section("Result", _describe_result(summary)),
        Section("Folds", _describe_folds(summary)),
        Section("Post-processing", describe_postprocessing(summary["postprocessing"])),
        Section("Worst cases", _describe_worst(folder, summary)),
        Section("Cases", [_make_case_table(summary)]),
        Section("Experiment", _describe_experiment(folder)),
    )
    by_site = _goes_by_site(summary)
    subtitle = (
        f"{'Leaving one site out' if by_site else 'Cross-validation'} in {summary['folds']} folds on "
        f"{summary['dataset']}, {summary['steps']} steps each. Every case was segmented by a model that had "
        f"not seen {'a case of its site' if by_site else 'it'}."
    )
    page = Page(summary["name"], subtitle, [section for section in sections if section.blocks])
    write_page(page, folder / REPORT_NAME)


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a cross-validation's `summary.json`.

    Raises:
        DataError: it is missing or damaged, or of another kind.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = {"folds", "per_fold", "cases", "postprocessing"} - set(summary)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder} holds no finished cross-validation: {path.name} cannot be read ({error}); make one "
            f"with medseg-brn train CONFIG -o {folder} --all-folds"
        ) from None
    if missing:
        raise DataError(
            f"{path} is no cross-validation's: it lacks {', '.join(sorted(missing))}; give the folder that "
            "train --all-folds wrote"
        )
    return dict(summary)


def _goes_by_site(summary: dict[str, Any]) -> bool:
    """Whether each fold holds out a site."""
    return bool(summary.get("folds_by") == "site")


def _name_fold(fold: dict[str, Any]) -> str:
    """`fold 2`, or `fold 2 (site B)`."""
    return f"fold {fold['fold']}" + (f" (site {fold['site']})" if "site" in fold else "")


def _describe_result(summary: dict[str, Any]) -> list[Block]:
    failed = [fold for fold in summary["per_fold"] if fold["status"] != "finished"]
    blocks: list[Block] = []
    if failed:
        names = ", ".join(_name_fold(fold) for fold in failed)
        blocks.append(
            Paragraph(
                f"Not finished: {names}. What stands here is of the other folds' cases alone, and no "
                "model is made of them; the same command with --resume goes on."
            )
        )
    last = summary.get("final_run")
    if last is not None and last["status"] != "finished":
        blocks.append(
            Paragraph(
                f"Not finished: the last training, on all cases ({last['error']}). There is no model; the "
                "same command with --resume goes on."
            )
        )
    spread = summary["spread_over_folds"]
    tiles = [*make_tiles(summary).tiles]
    if spread["dice_mean_sd"] is not None:
        tiles.append(
            Tile(
                "Spread over folds",
                f"{spread['dice_mean_sd']:.3f}",
                f"standard deviation of the folds' mean Dice, {spread['dice_mean_lowest']:.3f} to "
                f"{spread['dice_mean_highest']:.3f}",
            )
        )
    after = summary["postprocessed"]
    if after is not None:
        tiles.append(
            Tile(
                "With post-processing",
                f"{after['dice_mean']:.3f}",
                "mean Dice; the rules were chosen on these same cases, so that new ones gain less",
            )
        )
    return [*blocks, Tiles(tiles), _with_intervals(summary), make_dice_figure(summary)]


def _with_intervals(summary: dict[str, Any]) -> Table:
    """The table of structures, with the interval of each mean Dice after it, where the SD would stand."""
    table = make_class_table(summary)
    intervals = [found.get("dice_interval_95") for found in summary["summary"]["classes"].values()]
    told = [f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else None for interval in intervals]
    return replace(
        table,
        columns=[*table.columns[:2], Column("95 % interval"), *table.columns[3:]],
        rows=[[*row[:2], interval, *row[3:]] for row, interval in zip(table.rows, told, strict=True)],
    )


def _describe_folds(summary: dict[str, Any]) -> list[Block]:
    names, by_site = list(summary["summary"]["classes"]), _goes_by_site(summary)
    rows: list[list[Cell]] = []
    for fold in summary["per_fold"]:
        name = f"fold_{fold['fold']}"
        found = fold.get("classes", {})
        done = fold["status"] == "finished"
        rows.append(
            [
                Link(name, f"{name}/report.html") if done else name,
                *([fold["site"]] if by_site else []),
                fold["status"] if fold["error"] is None else f"failed: {fold['error']}",
                fold["cases"],
                fold["training_seconds"] / 60,
                fold.get("dice_mean"),
                *(found.get(structure, {}).get("dice_mean") for structure in names),
            ]
        )
    columns = [Column("Fold"), *([Column("Held-out site")] if by_site else []), Column("Status")]
    columns += [Column("Cases", "d"), Column("Training (min)", ".1f")]
    columns += [Column("Mean Dice", ".3f"), *(Column(f"{name}: Dice", ".3f") for name in names)]
    table = Table("Each fold's model on the cases that it held out.", columns, rows)
    return [table, _make_spread_table(summary, names)]


def _make_spread_table(summary: dict[str, Any], names: list[str]) -> Table:
    """How many held-out cases of each fold have each structure."""
    folds = [fold for fold in summary["per_fold"] if "classes" in fold]
    drawn = (
        "each fold holds out a site as it is"
        if _goes_by_site(summary)
        else "folds are drawn so that these are alike"
    )
    return Table(
        f"Held-out cases that have each structure, by fold: {drawn}.",
        [Column("Structure"), *(Column(_name_fold(fold), "d") for fold in folds), Column("All", "d")],
        [
            [name, *counts, sum(counts)]
            for name in names
            for counts in [[fold["classes"][name]["cases_with_reference"] for fold in folds]]
        ],
    )


def describe_postprocessing(decision: dict[str, Any]) -> list[Block]:
    """What was decided, and the table of what was tried."""
    rules = {name: rule for name, rule in decision["rules"].items() if say_rule(rule)}
    chosen = "; ".join(f"{name}: {say_rule(rule)}" for name, rule in rules.items()) or "none"
    text = (
        f"Chosen: {chosen}. A rule is kept where it raises the structure's out-of-fold Dice by more than "
        "chance (the interval of the difference, paired over 5 cases or more, lies above 0) and lowers no "
        "other structure's, and where all rules together lower none's. The intervals are so wide that chance "
        "passes for help in one of twenty decisions at most, however much is tried. A structure that neither "
        "map has counts as Dice 1 here, so that a false alarm removed is a gain."
    )
    columns = [Column("Structure"), Column("Tried"), Column("Dice before", ".4f"), Column("after", ".4f")]
    confidence = decision["tried"][0]["confidence"] if decision["tried"] else 0.95
    columns += [Column("Difference", "+.4f"), Column(f"{confidence:.2%} interval"), Column("Kept")]
    rows: list[list[Cell]] = [
        [
            trial["structure"],
            say_rule(trial["rule"]),
            trial["dice_before"],
            trial["dice_after"],
            trial["difference"],
            say_interval(trial["interval"]),
            _say_kept(trial),
        ]
        for trial in decision["tried"]
    ]
    return [
        Paragraph(text),
        *([Table("Everything that was tried, in order.", columns, rows)] if rows else []),
    ]


def say_rule(rule: dict[str, Any]) -> str:
    """A post-processing rule in words; empty where it does nothing."""
    return ", ".join(
        words.format(_say_number(rule[option])) for option, words in OPTIONS.items() if rule.get(option)
    )


def _say_number(value: float) -> str:
    """Three digits: 0.25, 27.5, 12,400."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def say_interval(interval: list[float] | None) -> str | None:
    """An interval of a difference, with signs."""
    return None if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _say_kept(trial: dict[str, Any]) -> str:
    if trial["kept"]:
        return "yes"
    return "no" if trial["harmed"] is None else f"no: harms {trial['harmed']}"


def _describe_worst(folder: Path, summary: dict[str, Any]) -> list[Block]:
    """Overlays of the cases with the lowest mean Dice, worst first."""
    scored = [(dice, case) for case in summary["cases"] if (dice := mean_dice(case)) is not None]
    worst = sorted(scored, key=lambda pair: (pair[0], pair[1]["case"]))[:WORST_CASES]
    labelled = [
        (f"{case['case']}, held out by fold {case['fold']}, mean Dice {dice:.3f}", case)
        for dice, case in worst
    ]
    # an absolute path stays what it is
    return show_cases(labelled, lambda path: folder / path, summary.get("ignore_value"))


def _make_case_table(summary: dict[str, Any]) -> Table:
    table = make_case_table(summary)
    return replace(
        table,
        columns=[table.columns[0], Column("Fold", "d"), *table.columns[1:]],
        rows=[
            [row[0], case["fold"], *row[1:]] for row, case in zip(table.rows, summary["cases"], strict=True)
        ],
    )


def _describe_experiment(folder: Path) -> list[Block]:
    path = folder / "cross_validation.yaml"
    if not path.is_file():
        return []
    return [Listing("Every option (cross_validation.yaml)", path.read_text(encoding="utf-8"))]
