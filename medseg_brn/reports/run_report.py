"""The report of a training run: what was trained, how it went, how good it is, what it cost."""

from pathlib import Path

import numpy as np

from medseg_brn.reports.case_overlays import show_cases
from medseg_brn.reports.curves import draw_curve, draw_points
from medseg_brn.reports.diagnosis.cases import find_suspects
from medseg_brn.reports.diagnosis.course import share_waiting
from medseg_brn.reports.diagnosis.finding import Finding
from medseg_brn.reports.diagnosis.section import describe_diagnosis, diagnose, write_diagnosis
from medseg_brn.reports.drawing import SERIES
from medseg_brn.reports.evaluation_blocks import (
    make_case_table,
    make_class_table,
    make_dice_figure,
    make_tiles,
    mean_dice,
    pick_best_median_worst,
)
from medseg_brn.reports.page import (
    Block,
    Facts,
    Gallery,
    Listing,
    Page,
    Paragraph,
    Section,
    Tile,
    Tiles,
    write_page,
)
from medseg_brn.reports.run_record import RunRecord, read_run
from medseg_brn.reports.wording import tell_duration, times


def write_run_report(run_folder: Path) -> tuple[Finding, ...]:
    """Writes `report.html` and `diagnosis.json` into a run folder, each whole or not at all.

    A run that is not finished, or that validated nothing, is reported as far as it went.

    Returns:
        What is suspicious about the run, the weightiest first.

    Raises:
        DataError: the folder is no run folder, or a file in it is damaged.
    """
    run = read_run(run_folder)
    network = run.experiment.network
    suspects = find_suspects(run.patches)
    findings = diagnose(run, suspects)
    sections = (
        Section("Result", _describe_result(run)),
        Section("Diagnosis", describe_diagnosis(run, findings, suspects)),
        Section("Segmentations", _describe_segmentations(run)),
        Section("Cases", [make_case_table(run.evaluation)] if run.evaluation is not None else []),
        Section("Training", _describe_training(run)),
        Section("Cost", _describe_cost(run)),
        Section("Experiment", _describe_experiment(run)),
    )
    subtitle = (
        f"3D U-Net with {_say(network.norm)} normalization, trained on {run.experiment.dataset.path} "
        f"for {_steps_done(run)} of {run.experiment.training.steps} steps."
    )
    page = Page(run.experiment.name, subtitle, [section for section in sections if section.blocks])
    write_diagnosis(run, findings, suspects)
    write_page(page, run_folder / "report.html")
    return findings


def _describe_result(run: RunRecord) -> list[Block]:
    if run.evaluation is None:
        reason = (
            "all cases were trained on (dataset.fold is null)"
            if run.experiment.dataset.fold is None
            else f"the run stopped at step {run.divergence['step']}, see the diagnosis"
            if run.divergence
            else "the run has not come to its validation yet"
        )
        return [
            Paragraph(f"No validation data: {reason}, so nothing is known here of how good the model is.")
        ]
    return [
        make_tiles(run.evaluation),
        make_class_table(run.evaluation),
        make_dice_figure(run.evaluation),
    ]


def _describe_segmentations(run: RunRecord) -> list[Block]:
    """Overlays of the best, the median and the worst case, best first."""
    if run.evaluation is None:
        return []
    labelled = [
        (f"{role}: {case['case']}, mean Dice {mean_dice(case):.3f}", case)
        for role, case in pick_best_median_worst(run.evaluation).items()
    ]
    return show_cases(labelled, run.locate, run.split.get("ignore_value"))


def _describe_training(run: RunRecord) -> list[Block]:
    metrics = run.metrics
    steps = metrics["step"]
    if not steps.size:
        return [Paragraph("No step has been recorded yet.")]
    figures = [
        draw_curve(
            steps,
            metrics["loss"],
            label="Training loss",
            caption="Median over neighbouring steps, and their spread.",
        )
    ]
    validated = np.isfinite(metrics["dice"])
    if validated.any():
        figures.append(
            draw_points(
                steps[validated],
                metrics["dice"][validated],
                label="Validation Dice",
                caption="Mean foreground Dice on whole held-out volumes, during the run.",
            )
        )
    figures += [
        draw_curve(
            steps,
            metrics["gradient_norm"],
            label="Gradient norm",
            caption="Before clipping; logarithmic.",
            colour=SERIES[2],
            log_scale=True,
        ),
        draw_curve(
            steps, metrics["learning_rate"], label="Learning rate", caption="As scheduled.", colour=SERIES[3]
        ),
    ]
    if np.isfinite(metrics["discriminator_loss"]).any():
        figures += [
            draw_curve(
                steps,
                metrics["discriminator_loss"],
                label="Discriminator's loss",
                caption="Hinge loss: 0 with references and predictions well apart, 2 by guessing.",
            ),
            draw_curve(
                steps,
                metrics["adversarial_loss"],
                label="Adversarial loss",
                caption="Minus the discriminator's mean score of predictions; the training loss is without.",
                colour=SERIES[1],
            ),
        ]
    return [Gallery(figures)]


def _describe_cost(run: RunRecord) -> list[Block]:
    """Durations, the share spent waiting for data, and the size of what came out."""
    seconds = run.metrics["seconds"]
    if not seconds.size:
        return []
    patches = run.experiment.training.batch_size * run.experiment.training.accumulation
    median = float(np.median(seconds))
    share = share_waiting(run.metrics)
    tiles = [
        Tile(
            "Training time",
            tell_duration(float(seconds.sum())),
            "sum over the steps, validation not counted",
        ),
        Tile("Per step", f"{median * 1000:.0f} ms", f"median; {patches / median:.1f} patches per second"),
        Tile("Waiting for patches", f"{share:.1%}", "share of the training time"),
    ]
    memory_mb = run.model.get("training", {}).get("peak_memory_mb")
    if memory_mb is not None:
        tiles.append(Tile("Peak memory", f"{memory_mb / 1000:.2f} GB", "of the training process"))
    weights = run.folder / "model" / "model.safetensors"
    if weights.is_file():
        tiles.append(Tile("Model", f"{weights.stat().st_size / 1e6:.1f} MB", "weights on disk"))
    return [Tiles(tiles)]


def _describe_experiment(run: RunRecord) -> list[Block]:
    experiment = run.experiment
    training, network, dataset = experiment.training, experiment.network, experiment.dataset
    trained, held_out = (len(run.split.get(part, [])) for part in ("training", "validation"))
    passes = f", {training.accumulation} forward passes per step" if training.accumulation > 1 else ""
    standardized = ", standardized weights" if network.weight_standardization else ""
    facts = {
        "Dataset": dataset.path,
        "Fold": _say_fold(run),
        "Cases": f"{trained} trained on, {held_out} held out",
        "Patches": f"{times(experiment.patches.size)} voxels, batch size {training.batch_size}{passes}",
        "Network": f"{network.encoder} encoder, channels {', '.join(map(str, network.channels))}",
        "Normalization": _say(network.norm) + standardized,
        "Optimizer": f"{training.optimizer}, learning rate {training.learning_rate:g} ({training.decay})",
        "Seed": str(experiment.seed),
    }
    initial = run.initial_weights
    if initial:
        facts["Begun with"] = (
            f"weights of {initial['model']}: {len(initial['whole'])} tensors whole,"
            f" {len(initial['in_part'])} in part; {len(initial['fresh'])} fresh"
        )
    summary = run.model.get("training", {})
    software = {
        name: str(summary[name]) for name in ("medseg_brn", "torch", "python", "threads") if name in summary
    }
    if software:
        facts["Made with"] = ", ".join(f"{name} {value}" for name, value in software.items())
    notes = [Paragraph(f"{note}.") for note in initial.get("notes", [])]
    return [Facts("What was trained", facts), *notes, Listing("Every option (config.yaml)", run.config_text)]


def _say_fold(run: RunRecord) -> str:
    dataset = run.experiment.dataset
    if dataset.fold is None:
        return "none: trained on every case"
    if dataset.folds_by == "site":
        return f"{dataset.fold}: all cases of site {run.split.get('held_out_site', 'unknown')}"
    return f"{dataset.fold} of {dataset.folds}"


def _steps_done(run: RunRecord) -> int:
    steps = run.metrics["step"]
    return int(steps[-1]) if steps.size else 0


def _say(name: str) -> str:
    return name.replace("_", " ")
