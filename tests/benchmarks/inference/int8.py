"""int8 beside bf16 and fp32: Dice of held-out scans, and time and memory on a volume as large as a CT."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from inference.context import Context
from inference.measuring import Run, in_turn, make_table, ratios, report, spread
from inference.subjects import make_ct, make_model

from medseg_brn.config import NetworkConfig

CALIBRATION_CASES = 16
TOLERANCE = 0.002
PRECISIONS = ("fp32", "bf16", "int8")
SHAPE, SPACING_MM, CLASSES, PATCH = (256, 256, 160), (1.5, 1.5, 1.5), 3, (160, 160, 96)
NETWORK = NetworkConfig(  # as nnU-Net plans it for a CT
    channels=(32, 64, 128, 256, 320, 320),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 1)),
    encoder_blocks=2,
    decoder_blocks=2,
    weight_standardization=False,
)
NOTES = (
    f"Dice: one trained model, calibrated with models quantize on {CALIBRATION_CASES} of its training scans; "
    "infer and evaluate as commands. Difference to fp32, mean and worst case (mean of the classes).",
    "Time and memory: whole infer processes in turn, six levels of 32 to 320 channels with random weights, "
    "calibrated on the scan itself; min / median / max. Random weights tell nothing of accuracy.",
)


def run_section(context: Context) -> None:
    """Measure both; where bf16 is not to be had, fp32 takes its place."""
    precisions = [name for name in PRECISIONS if name != "bf16" or _has_bf16()]
    dice = _compare_dice(context, precisions)
    runs = _compare_runs(context, precisions[-2:])
    difference = dice["int8"]["mean"] - dice["fp32"]["mean"]
    within = "yes" if abs(difference) <= TOLERANCE else "NO"
    verdict = f"int8's mean Dice differs by {difference:+.5f}: within {TOLERANCE}? {within}"
    classes = list(dice["fp32"]["classes"])
    rows = [
        [
            name,
            f"{found['mean']:.5f}",
            *(f"{found['classes'][structure]:.5f}" for structure in classes),
            f"{found['difference']:+.5f}",
            f"{found['worst']:+.5f}",
        ]
        for name, found in dice.items()
    ]
    columns = ("held-out hippocampus", "Dice", *classes, "mean - fp32", "worst case")
    table = make_table(f"{dice['fp32']['cases']} scans, one model", columns, rows)
    reference = precisions[-2]
    seconds = {name: [one.seconds for one in found] for name, found in runs.items()}
    table_runs = make_table(
        f"infer, {'x'.join(map(str, SHAPE))}, {CLASSES} classes",
        ("precision", "wall s", f"{reference} ÷ it", "largest process GB"),
        [
            [
                name,
                spread(seconds[name], ".2f"),
                spread(ratios(seconds[reference], seconds[name]), ".2f"),
                spread((one.largest_bytes / 1e9 for one in found), ".2f"),
            ]
            for name, found in runs.items()
        ],
    )
    raw = {**context.describe(), "dice": dice, "runs": runs}
    report("int8-dice", context.output, table, raw, (NOTES[0], verdict))
    report("int8", context.output, table_runs, raw, NOTES[1:])


def _has_bf16() -> bool:
    import torch

    from medseg_brn.inference.precision import has_native_bf16

    return has_native_bf16(torch.device("cpu"))


def _compare_dice(context: Context, precisions: list[str]) -> dict[str, dict[str, Any]]:
    """Return Dice of the held-out scans for each precision."""
    assert context.data is not None and context.hippocampus_run is not None
    dataset, folder = context.data / "Task04_Hippocampus", context.output / "int8"
    split = json.loads((context.hippocampus_run / "split.json").read_text(encoding="utf-8"))
    chosen = split["training"][:: max(1, len(split["training"]) // CALIBRATION_CASES)][:CALIBRATION_CASES]
    scans = {
        name: [dataset / "imagesTr" / f"{case}.nii.gz" for case in cases]
        for name, cases in (("training", chosen), ("held out", split["validation"]))
    }
    model = folder / "hippocampus"
    context.ours("models", "quantize", context.hippocampus_run, *scans["training"], "-o", model)
    found: dict[str, dict[str, Any]] = {}
    by_case: dict[str, dict[str, float]] = {}
    for name in precisions:
        predictions = folder / f"label-maps-{name}"
        shutil.rmtree(predictions, ignore_errors=True)
        options = ("--device", "cpu", "--threads", context.threads, "--precision", name)
        context.ours("infer", model, *scans["held out"], "-o", predictions, *options)
        metrics = predictions.with_suffix(".json")
        context.ours("evaluate", predictions, dataset / "labelsTr", "-o", metrics)
        content = json.loads(metrics.read_text(encoding="utf-8"))
        by_case[name] = {case["case"]: case["dice_mean"] for case in content["cases"]}
        summary = content["summary"]
        differences = [by_case[name][case] - by_case["fp32"][case] for case in by_case["fp32"]]
        found[name] = {
            "mean": summary["dice_mean"],
            "classes": {key: one["dice_mean"] for key, one in summary["classes"].items()},
            "cases": summary["cases"],
            "difference": float(np.mean(differences)),
            "worst": min(differences),
            "by_case": by_case[name],
        }
    return found


def _compare_runs(context: Context, precisions: list[str]) -> dict[str, list[Run]]:
    """Time two precisions in turn on the CT."""
    folder = context.output / "int8"
    scan, model = folder / "scan.nii.gz", folder / "ct"
    if not scan.is_file():
        make_ct(scan, SHAPE, SPACING_MM)
    make_model(folder / "ct-float", NETWORK, CLASSES, PATCH)
    context.ours("models", "quantize", folder / "ct-float", scan, "-o", model)
    maps = {name: folder / f"ct-{name}.nii.gz" for name in precisions}

    def command(name: str, label_map: Path) -> Run:
        return context.infer(model, scan, label_map, "--precision", name)

    commands = {
        name: lambda name=name, path=path: command(name, path)  # type: ignore[misc]
        for name, path in maps.items()
    }
    return in_turn(commands, context.repeats)
