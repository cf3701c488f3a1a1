"""The report of a comparison: every norm at every batch size, what differs, and what cannot be told."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.reports.comparison import texts as explain
from medseg_brn.reports.comparison.charts import (
    Point,
    draw_agreement,
    draw_by_batch_size,
    draw_by_norm,
)
from medseg_brn.reports.comparison.curves import draw_losses, draw_over_steps
from medseg_brn.reports.comparison.looks import Looks, choose_looks, keep_finite
from medseg_brn.reports.comparison.record import (
    Cell,
    ComparisonRecord,
    Run,
    as_number,
    find_run_file,
    read_comparison,
    read_losses,
    read_seams,
)
from medseg_brn.reports.comparison.seams import draw_seams
from medseg_brn.reports.comparison.texts import say_input
from medseg_brn.reports.comparison.verdicts import make_verdict_table
from medseg_brn.reports.comparison.words import (
    describe_setting,
    make_batch_size_table,
    make_cell_tables,
    make_run_table,
    make_summary,
)
from medseg_brn.reports.drawing import make_svg_file
from medseg_brn.reports.page import Block, Facts, Figure, Gallery, Page, Paragraph, Section, write_page
from medseg_brn.volumes.atomic import write_text_atomic

EDGE = "An open mark at the edge lies beyond it; its number says where."
LOGARITHMIC = "logarithmic. An open mark at the left edge lies below the axis; the number 0 is exactly 0."


def write_comparison_report(folder: Path) -> None:
    """Writes `report.html` and `dice_<input>.svg`, its main picture, into a comparison's folder, whole.

    Reads `summary.json`, and where they are there `runs.csv`, `probes.csv`, and of each run
    `runs/<name>/metrics.csv` and `seams.npz`. What is missing is left out of the page or said to be missing.

    Raises:
        DataError: there is no `summary.json`, or a file is damaged.
    """
    record = read_comparison(folder)
    looks = choose_looks(record.norms, record.reference)
    sections = (
        Section("Summary", make_summary(record)),
        Section("What was compared", describe_setting(record)),
        Section("Segmentation quality", _describe_quality(record, looks)),
        Section("Training against use", _describe_disparity(record, looks)),
        Section("Noise of statistics", _describe_noise(record, looks)),
        Section("During training", _describe_probes(record, looks)),
        Section("Loss", _describe_losses(record, looks)),
        Section("Time and memory", _describe_cost(record, looks)),
        Section("Verdicts", make_verdict_table(record)),
        Section(
            "All figures", [*make_cell_tables(record), Facts("What the columns mean", explain.COLUMN_NOTES)]
        ),
        Section("Runs", make_run_table(record)),
    )
    page = Page(
        str(record.summary.get("name") or "Comparison of normalizations"),
        str(record.summary.get("description") or ""),
        [section for section in sections if section.blocks],
    )
    write_page(page, folder / "report.html")
    for name in record.inputs:
        figure = _draw_dice(record, looks, name)
        if figure is not None and name.isidentifier():  # it names a file
            write_text_atomic(folder / f"dice_{name}.svg", make_svg_file(figure.drawing))


def _describe_quality(record: ComparisonRecord, looks: Looks) -> list[Block]:
    means = _known([_draw_dice(record, looks, name) for name in record.inputs])
    spreads = _known([_draw_spread(record, looks, name) for name in record.inputs])
    blocks: list[Block] = []
    if means:
        blocks += [Paragraph(explain.DICE), Gallery(means, wide=True)]
    if spreads:
        blocks += [Paragraph(explain.SPREAD), Gallery(spreads, wide=True)]
    return [*blocks, *make_batch_size_table(record)]


def _draw_dice(record: ComparisonRecord, looks: Looks, input_name: str) -> Figure | None:
    lines: dict[str, list[Point]] = {norm: [] for norm in record.norms}
    for cell in sorted(record.cells_of(input_name), key=lambda cell: cell.batch_size):
        lines[cell.norm].append(
            Point(cell.batch_size, cell.number("dice_mean"), *cell.interval("dice_interval"))
        )
    if not any(np.isfinite(point.value) for points in lines.values() for point in points):
        return None
    covered = "for other cases only" if record.seeds == 1 else "over seeds and cases together"
    return draw_by_batch_size(
        lines,
        looks,
        label=f"Mean foreground Dice, {say_input(input_name)}",
        caption=f"Mean over seeds and its 95\u00a0% interval {covered}. Marks of one batch size stand "
        f"side by side. {EDGE}",
        floor=find_dice_floor([cell.number("dice_mean") for cell in record.cells_of(input_name)]),
    )


def _draw_spread(record: ComparisonRecord, looks: Looks, input_name: str) -> Figure | None:
    values: dict[int, dict[str, list[float]]] = {size: {} for size in record.batch_sizes_of(input_name)}
    for run in record.runs:
        if run.input == input_name:
            values[run.batch_size].setdefault(run.norm, []).append(run.dice)
    if not any(np.isfinite(dice) for norms in values.values() for group in norms.values() for dice in group):
        return None
    return draw_by_norm(
        values,
        looks,
        label=f"Dice of every run, {say_input(input_name)}",
        caption="One mark per seed; upright line and number: their mean. A run that diverged counts as 0. "
        f"{EDGE} A dash: no run.",
        floor=find_dice_floor([run.dice for run in record.runs if run.input == input_name]),
    )


def _describe_disparity(record: ComparisonRecord, looks: Looks) -> list[Block]:
    disparity = _draw_metric(
        record,
        looks,
        "train_eval_disparity",
        "Train/eval disparity",
        f"Mean difference of the class probabilities between the two modes; {LOGARITHMIC}",
    )
    mismatch = _draw_metric(
        record,
        looks,
        "tile_mismatch",
        "Tile mismatch",
        f"Mean difference of the class probabilities; {LOGARITHMIC}",
    )
    blocks: list[Block] = []
    if disparity:
        blocks += [
            Paragraph(explain.DISPARITY),
            Gallery(disparity, wide=True),
        ]
    if mismatch:
        blocks += [
            Paragraph(explain.TILE_MISMATCH),
            Gallery(mismatch, wide=True),
        ]
    return [*blocks, *_describe_seams(record)]


def _draw_metric(record: ComparisonRecord, looks: Looks, key: str, label: str, caption: str) -> list[Figure]:
    """A metric of every cell on a logarithmic scale, one figure per input."""
    figures = []
    for name in record.inputs:
        values = _tabulate(record.cells_of(name), lambda cell: cell.number(key))
        if _any_finite(values):
            figures.append(
                draw_by_norm(
                    values,
                    looks,
                    label=f"{label}, {say_input(name)}",
                    caption=caption,
                    form=".2g",
                    log_scale=True,
                )
            )
    return figures


def _describe_seams(record: ComparisonRecord) -> list[Block]:
    """One picture per norm, at the smallest batch size and with the first input that have one."""
    chosen: dict[str, tuple[Run, Path]] = {}
    order = {name: place for place, name in enumerate(record.inputs)}
    for run in sorted(record.runs, key=lambda run: (order[run.input], run.batch_size, run.seed)):
        path = find_run_file(record.folder, run, "seams.npz")
        if path is not None:
            chosen.setdefault(run.norm, (run, path))
    seams, problems = {}, []
    for norm, (_, path) in chosen.items():
        try:
            seams[norm] = read_seams(path)
        except DataError as error:
            problems.append(Paragraph(f"{norm}: seams not drawn. {error}"))
    if not seams:
        return list(problems)
    largest = max(float(np.nanmax(np.abs(each.tiled - each.full), initial=0)) for each in seams.values())
    figures = []
    for norm in (norm for norm in record.norms if norm in seams):
        run = chosen[norm][0]
        worst = float(np.nanmax(np.abs(seams[norm].tiled - seams[norm].full), initial=0))
        told = f"{norm}, batch size {run.batch_size}, {say_input(run.input)}, seed {run.seed}"
        caption = f"{told}. Largest difference {worst:.2g}."
        figures.append(Figure(draw_seams(seams[norm], largest, f"Seams of {told}"), caption))
    return [
        Paragraph(explain.SEAMS.format(largest=f"{largest:.2g}")),
        Gallery(figures, wide=True),
        *problems,
    ]


def _describe_noise(record: ComparisonRecord, looks: Looks) -> list[Block]:
    figures = []
    for key, label in (("variance_noise", "Noise of the variance"), ("mean_noise", "Noise of the mean")):
        points: dict[str, list[tuple[float, float]]] = {}
        for cell in record.cells:
            pair = cell.theory_and_measured(key)
            if all(value > 0 for value in pair):
                points.setdefault(cell.norm, []).append(pair)
        if points:
            caption = "One mark per norm, batch size and input; the grey band is ±15\u00a0%."
            figures.append(draw_agreement(points, looks, label=label, caption=caption))
    if not figures:
        return []
    return [
        Paragraph(explain.NOISE),
        Gallery(figures),
    ]


def _describe_probes(record: ComparisonRecord, looks: Looks) -> list[Block]:
    clips = _draw_probes(record, looks, "clip_rate_r", "Clip rate of r") + _draw_probes(
        record, looks, "clip_rate_d", "Clip rate of d"
    )
    drift = _draw_probes(record, looks, "statistics_drift", "Drift of running statistics", log_scale=True)
    blocks: list[Block] = []
    if clips:
        blocks += [
            Paragraph(explain.CLIP_RATES),
            Gallery(clips, wide=True),
        ]
    if drift:
        blocks += [
            Paragraph(explain.DRIFT),
            Gallery(drift, wide=True),
        ]
    return blocks


def _draw_probes(
    record: ComparisonRecord, looks: Looks, metric: str, label: str, log_scale: bool = False
) -> list[Figure]:
    figures = []
    for name in record.inputs:
        samples = record.samples_of(metric, name)
        if samples:
            caption = (
                f"{label}, {say_input(name)}. Median over seeds, their range as a band; mean over layers."
            )
            figures.append(draw_over_steps(samples, looks, label=label, caption=caption, log_scale=log_scale))
    return figures


def _describe_losses(record: ComparisonRecord, looks: Looks) -> list[Block]:
    figures = []
    for name in record.inputs:
        curves: dict[str, dict[int, list[tuple[np.ndarray, np.ndarray]]]] = {}
        for run in (run for run in record.runs if run.input == name):
            steps, losses = read_losses(record.folder, run)
            if steps.size:
                curves.setdefault(run.norm, {}).setdefault(run.batch_size, []).append((steps, losses))
        if curves:
            ordered = {norm: curves[norm] for norm in record.norms if norm in curves}
            caption = (
                f"Training loss, {say_input(name)}. One line per seed, medians of neighbouring steps; "
                "each tick at the top is a spike."
            )
            figures.append(draw_losses(ordered, looks, caption=caption))
    if not figures:
        return []
    return [
        Paragraph(explain.LOSS),
        Gallery(figures, wide=True),
    ]


def _describe_cost(record: ComparisonRecord, looks: Looks) -> list[Block]:
    figures = []
    for key, label, scale, form in (
        ("seconds_per_step", "Milliseconds per training step", 1000.0, ".0f"),
        ("peak_memory_mb", "Peak memory (MB)", 1.0, ".0f"),
    ):
        values = _tabulate(record.cells, lambda cell, key=key, by=scale: by * cell.number(key))  # type: ignore[misc]
        if _any_finite(values):
            caption = "One mark per input; number: their mean."
            figures.append(draw_by_norm(values, looks, label=label, caption=caption, form=form))
    if not figures:
        return []
    return [
        Paragraph(explain.COST),
        Gallery(figures, wide=True),
    ]


def _tabulate(cells: Sequence[Cell], tell: Callable[[Cell], float]) -> dict[int, dict[str, list[float]]]:
    """Batch size -> norm -> values."""
    values: dict[int, dict[str, list[float]]] = {size: {} for size in sorted({c.batch_size for c in cells})}
    for cell in cells:
        values[cell.batch_size].setdefault(cell.norm, []).append(as_number(tell(cell)))
    return values


def _any_finite(values: dict[int, dict[str, list[float]]]) -> bool:
    return any(np.isfinite(v) for norms in values.values() for group in norms.values() for v in group)


def _known(figures: Sequence[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def find_dice_floor(dices: Sequence[float]) -> float:
    """Where a Dice axis begins: at the lowest that is at least half the median, so that a collapse shows
    as one and does not press the others together."""
    known = keep_finite(dices)
    return float(known[known >= np.median(known) / 2].min()) if known.size else 0.0
