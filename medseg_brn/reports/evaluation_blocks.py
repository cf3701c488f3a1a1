"""Blocks that show an evaluation (the content of `metrics.json` or `validation.json`)."""

import math
from typing import Any

from medseg_brn.reports.curves import draw_spread
from medseg_brn.reports.page import Column, Gallery, Table, Tile, Tiles


def make_tiles(evaluation: dict[str, Any]) -> Tiles:
    """The mean Dice with its interval, and the mean distance and surface Dice over classes."""
    summary = evaluation["summary"]
    interval = summary.get("dice_interval_95")
    spread = f"95 % interval over cases {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    hd95, surface_dice = (_mean_over_classes(summary, name) for name in ("hd95_mm_mean", "surface_dice_mean"))
    tolerance = f"surfaces within {summary['tolerance_mm']:g} mm" if "tolerance_mm" in summary else ""
    return Tiles(
        [
            Tile("Mean foreground Dice", _tell(summary["dice_mean"], ".3f"), spread),
            Tile("HD95", _tell(hd95, ".2f", " mm"), "mean over classes; 0 is perfect"),
            Tile("Surface Dice", _tell(surface_dice, ".3f"), tolerance),
            Tile("Held-out cases", str(len(evaluation["cases"])), "whole volumes, on their own grids"),
        ]
    )


def make_class_table(evaluation: dict[str, Any]) -> Table:
    """One row per class: means over cases."""
    classes = evaluation["summary"]["classes"]
    columns = {
        "dice_mean": Column("Dice", ".3f"),
        "dice_sd": Column("SD", ".3f"),
        "surface_dice_mean": Column("Surface Dice", ".3f"),
        "hd95_mm_mean": Column("HD95 (mm)", ".2f"),
        "average_surface_distance_mm_mean": Column("Surface distance (mm)", ".2f"),
        "reference_ml_mean": Column("Volume (ml)", ".2f"),
        "volume_difference_ml_mean": Column("Volume excess (ml)", "+.2f"),
        "missed": Column("Missed", "d"),
        "false_alarms": Column("False alarms", "d"),
    }
    return Table(
        "Means over cases. A class in one map only has Dice 0 and no distance (missed, false alarm); a class "
        "in neither is left out.",
        [Column("Class"), *columns.values()],
        [[name, *(figures.get(key) for key in columns)] for name, figures in classes.items()],
    )


def make_case_table(evaluation: dict[str, Any]) -> Table:
    """One row per case: mean Dice, then Dice and HD95 of each class."""
    names = list(evaluation["summary"]["classes"])
    columns = [Column("Case"), Column("Mean Dice", ".3f")]
    for name in names:
        columns += [Column(f"{name}: Dice", ".3f"), Column(f"{name}: HD95 (mm)", ".2f")]
    rows = [
        [
            case["case"],
            mean_dice(case),
            *(case["classes"].get(name, {}).get(metric) for name in names for metric in ("dice", "hd95_mm")),
        ]
        for case in evaluation["cases"]
    ]
    return Table("Every case; click a heading to sort.", columns, rows)


def make_dice_figure(evaluation: dict[str, Any]) -> Gallery:
    """Dice of every case, one row per class."""
    groups = {
        name: [_number(case["classes"].get(name, {}).get("dice")) for case in evaluation["cases"]]
        for name in evaluation["summary"]["classes"]
    }
    caption = "Each dot is a case; the box spans the middle half of the cases, the line is the median."
    return Gallery([draw_spread(groups, label="Dice", caption=caption)], wide=True)


def mean_dice(case: dict[str, Any]) -> float | None:
    """Mean Dice over the classes where it is defined, or None."""
    defined = [metrics["dice"] for metrics in case["classes"].values() if metrics["dice"] is not None]
    return math.fsum(defined) / len(defined) if defined else None


def pick_best_median_worst(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cases that show the range, by what they are: fewer than three cases fill fewer roles."""
    scored = [(mean_dice(case), case) for case in evaluation["cases"]]
    ranked = [
        case
        for _, case in sorted(
            ((dice, case) for dice, case in scored if dice is not None),
            key=lambda pair: pair[0],
            reverse=True,
        )
    ]
    if not ranked:
        return {}
    places = {"Best": 0, "Median": len(ranked) // 2, "Worst": len(ranked) - 1}
    picked: dict[str, dict[str, Any]] = {}
    for role, place in places.items():
        if ranked[place] not in picked.values():
            picked[role] = ranked[place]
    return picked


def _mean_over_classes(summary: dict[str, Any], metric: str) -> float | None:
    defined = [figures[metric] for figures in summary["classes"].values() if figures.get(metric) is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _tell(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def _number(value: float | None) -> float:
    return math.nan if value is None else value
