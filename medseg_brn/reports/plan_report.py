"""The page of a plan: what the dataset looks like, and what was chosen for it and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_brn.cases.dataset import Dataset, read_labelled_case
from medseg_brn.cases.fingerprint import CaseFacts, Fingerprint, Histogram
from medseg_brn.reports.drawing import INK, SERIES, drawing, make_svg
from medseg_brn.reports.overlays import draw_overlay
from medseg_brn.reports.page import (
    Block,
    Column,
    Figure,
    Gallery,
    Listing,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
)
from medseg_brn.reports.wording import tell_duration, times
from medseg_brn.volumes.volume import Volume

AXES = ("left-right", "back-front", "foot-head")
MOST_CLASSES_DRAWN = 40
EXAMPLES = 3


@dataclass(frozen=True)
class PlanFacts:
    """What the page tells of.

    Attributes:
        name: of the experiment's file.
        spacing_mm: of the network's grid.
        patch: size in voxels of it.
        choices: option, value and reason, in the order of the file.
        prediction: of the run's cost, see `planning.prediction`.
        memory_owner: whose memory is predicted, as in "of the GPU".
        told: the same in a sentence.
        config_text: the experiment's file.
    """

    name: str
    dataset: Dataset
    fingerprint: Fingerprint
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    choices: Sequence[tuple[str, Any, str]]
    prediction: Mapping[str, Any]
    memory_owner: str
    told: str
    warnings: Sequence[str]
    config_text: str


def make_plan_page(facts: PlanFacts) -> Page:
    """The whole page; a few cases are read for their pictures.

    Raises:
        DataError: one of these cases cannot be read.
    """
    sections = (
        Section("Plan", _describe_plan(facts)),
        Section(
            "Choices",
            [_make_choice_table(facts), Listing(f"The experiment ({facts.name})", facts.config_text)],
        ),
        Section("Cases", _describe_cases(facts)),
        Section("Sizes", _describe_sizes(facts)),
        Section("Intensities", _describe_intensities(facts)),
        Section("Classes", _describe_classes(facts)),
    )
    found = facts.fingerprint
    subtitle = (
        f"{found.num_cases} labelled cases, {len(found.channels)} channel{'s' * (len(found.channels) > 1)} "
        f"({', '.join(facts.dataset.modalities)}), {len(found.class_voxels) - 1} foreground classes."
    )
    return Page(f"Plan for {facts.dataset.name}", subtitle, sections)


def _describe_plan(facts: PlanFacts) -> list[Block]:
    cost = facts.prediction
    how = "measured on this network" if cost["measured"] else "not measured: from a rough model"
    steps = next((value for key, value, _ in facts.choices if key == "training.steps"), None)
    tiles = [
        Tile("Total time", tell_duration(cost["total_seconds"]), f"{steps} steps, validation included"),
        Tile("Per step", f"{cost['step_seconds']:.3g} s", how),
        Tile(
            "Peak memory",
            f"{cost['peak_memory_mb'] / 1e3:.2f} GB",
            f"{facts.memory_owner}, {how}",
        ),
        Tile("Patch", times(facts.patch), f"voxels of {times(facts.spacing_mm)} mm"),
    ]
    warnings = [Paragraph(f"Warning: {warning}.") for warning in facts.warnings]
    return [Tiles(tiles), *warnings, Paragraph(facts.told)]


def _make_choice_table(facts: PlanFacts) -> Table:
    rows = [(key, tell_value(value), reason) for key, value, reason in facts.choices]
    columns = [Column("Option"), Column("Value"), Column("Reason")]
    return Table("What the rules chose; every other option has its default.", columns, rows)


def _describe_cases(facts: PlanFacts) -> list[Block]:
    """Example slices, and the sites where they are known."""
    figures = []
    for case in pick_examples(facts.fingerprint):
        figures.append(Figure(_draw_case(facts.dataset, case), _tell_case(case)))
    blocks: list[Block] = [Gallery(figures, wide=True)]
    if facts.fingerprint.sites:
        rows = list(facts.fingerprint.sites.items())
        blocks.append(Table("Sites", [Column("Site"), Column("Cases", "d")], rows))
    return blocks


def pick_examples(fingerprint: Fingerprint) -> list[CaseFacts]:
    """The cases with the smallest, the median and the largest foreground, each once."""
    ordered = sorted(fingerprint.cases, key=lambda case: (sum(case.class_volumes_ml[1:]), case.name))
    ordered = [case for case in ordered if sum(case.class_voxels[1:])]
    picked = {index: ordered[index] for index in (0, len(ordered) // 2, len(ordered) - 1)}
    return list(picked.values())


def _draw_case(dataset: Dataset, case: CaseFacts) -> Any:
    files = next(found for found in dataset.labelled_cases if found.name == case.name)
    images, label_map = read_labelled_case(files, dataset)
    described = f"{case.name}: axial, coronal and sagittal slice with the outline of each class"
    nothing = Volume(np.zeros_like(label_map.array), label_map.grid)
    return draw_overlay(images[0], label_map, nothing, described, ignore_value=dataset.targets.ignore_class)


def _tell_case(case: CaseFacts) -> str:
    site = f", site {case.site}" if case.site is not None else ""
    return (
        f"{case.name}{site}: {times(case.shape)} voxels of {times(case.spacing_mm)} mm, "
        f"{sum(case.class_volumes_ml[1:]):,.1f} ml of foreground"
    )


def _describe_sizes(facts: PlanFacts) -> list[Block]:
    cases = facts.fingerprint.cases
    shapes = np.array(facts.fingerprint.shapes_at(facts.spacing_mm))
    figures = [
        _draw_axes(
            np.array([case.spacing_mm for case in cases]),
            "Voxel size (mm)",
            facts.spacing_mm,
            "the network's",
        ),
        _draw_axes(shapes, "Shape at the network's voxel size", facts.patch, "the patch"),
        _draw_axes(np.array([case.extent_mm for case in cases]), "Extent (mm)"),
    ]
    return [Gallery(figures)]


def _draw_axes(
    values: np.ndarray, title: str, mark: Sequence[float] | None = None, marked: str = ""
) -> Figure:
    """One row per axis: every case as a dot, and a bar at what was chosen."""
    random = np.random.default_rng(0)  # the dots' vertical scatter, which only keeps them apart
    with drawing(5.2, 2.3) as (figure, axes):
        for axis in range(3):
            scatter = random.uniform(-0.2, 0.2, len(values))
            axes.plot(values[:, axis], axis + scatter, ".", color=SERIES[0], alpha=0.6, markeredgewidth=0)
            if mark is not None:
                axes.plot(
                    [mark[axis]] * 2, [axis - 0.36, axis + 0.36], color=SERIES[1], solid_capstyle="butt"
                )
        axes.set_yticks(range(3), AXES)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(2.6, -0.6)
        axes.set_xlim(left=0)
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        median = times(np.median(values, axis=0))
        caption = f"Median {median}; each dot is a case" + (f", orange: {marked}." if marked else ".")
        return Figure(make_svg(figure, f"{title} along the three axes. {caption}"), caption)


def _describe_intensities(facts: PlanFacts) -> list[Block]:
    figures = []
    for number, channel in enumerate(facts.fingerprint.channels):
        modality = facts.dataset.modalities[number]
        name = f"Channel {number} ({modality})"
        unit = "HU" if modality == "ct" else "as stored"
        if channel.histogram is not None:
            caption = (
                f"Foreground, mean {_number(channel.mean)}, standard deviation {_number(channel.std)}; "
                f"percentiles 0.5 to 99.5 of {_number(channel.minimum)} to {_number(channel.maximum)}."
            )
            figures.append(_draw_histogram(channel.histogram, f"{name}, {unit}", caption))
        if channel.zscores is not None:
            caption = "The same voxels, in standard deviations of their scan from its mean."
            figures.append(_draw_histogram(channel.zscores, f"{name}, z-scored by scan", caption))
    return [Gallery(figures)]


def _draw_histogram(histogram: Histogram, title: str, caption: str) -> Figure:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    total = max(1, sum(histogram.counts))
    with drawing(5.2, 2.4) as (figure, axes):
        axes.stairs(np.array(histogram.counts) / total, edges, fill=True, color=SERIES[0], alpha=0.85)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.grid(axis="x", visible=False)
        return Figure(make_svg(figure, f"Histogram of {title}. {caption}"), caption)


def _describe_classes(facts: PlanFacts) -> list[Block]:
    """Volume and frequency of each class, in a table and, where there are not too many, in a drawing."""
    found = facts.fingerprint
    names = list(found.class_voxels)[1:]
    total = sum(found.class_voxels.values())
    rows = []
    for name in names:
        volumes = found.class_volumes_ml(name)
        low, median, high = np.percentile(volumes, (10, 50, 90)).tolist() if volumes else (None,) * 3
        share = found.class_voxels[name] / total
        rows.append((name, found.class_cases[name], low, median, high, share))
    columns = [
        Column("Class"),
        Column("Cases", "d"),
        Column("ml, 10 %", ",.1f"),
        Column("median", ",.1f"),
        Column("90 %", ",.1f"),
        Column("Share of voxels", ".2%"),
    ]
    table = Table(f"Volumes in the cases that have the class, of {found.num_cases} cases.", columns, rows)
    drawn = [name for name in names if found.class_cases[name]]
    blocks: list[Block] = [table]
    if 0 < len(drawn) <= MOST_CLASSES_DRAWN:
        blocks.append(Gallery([_draw_volumes(found, drawn)], wide=True))
    return blocks


def _draw_volumes(found: Fingerprint, names: Sequence[str]) -> Figure:
    """One row per class: its volume in every case, logarithmic, and in how many cases it is."""
    random = np.random.default_rng(0)
    with drawing(8.6, 0.9 + 0.36 * len(names)) as (figure, axes):
        for row, name in enumerate(names):
            volumes = np.array(found.class_volumes_ml(name))
            scatter = random.uniform(-0.2, 0.2, len(volumes))
            axes.plot(volumes, row + scatter, ".", color=SERIES[0], alpha=0.6, markeredgewidth=0)
            axes.plot([np.median(volumes)] * 2, [row - 0.32, row + 0.32], color=INK, solid_capstyle="butt")
            axes.annotate(
                f"{len(volumes)}/{found.num_cases}", (1, row), (6, 0), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", va="center", color=INK, annotation_clip=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("volume in ml (at the right: cases that have the class)")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        caption = "Volume of each class in each case that has it; the line is the median."
        return Figure(make_svg(figure, caption), caption)


def tell_value(value: Any) -> str:
    """A value as it stands in the file, near enough to read."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(tell_value(each) for each in value) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{name} {tell_value(each)}" for name, each in value.items()) or "none"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
