"""The whole command on a volume as large as a CT, beside `nnUNetv2_predict`: wall time and memory."""

import json
import shutil
from pathlib import Path
from typing import Any

from inference.context import Context
from inference.measuring import Run, in_turn, make_table, ratios, report, run, spread
from inference.subjects import make_ct, make_model

from medseg_brn.config import NetworkConfig
from medseg_brn.volumes.reading import read_volume

PATCH_ZYX = (96, 160, 160)
SPACING_MM = 1.5
CLASSES = (3, 24)
DATASET = "Dataset901_benchmark"
TRAINER = "nnUNetTrainer__nnUNetPlans__3d_fullres"
SCAN_NAME, SHAPE = "256x256x160 at 1.5 mm", (256, 256, 160)
COLUMNS = ("command", "wall s", "largest process GB", "all processes GB")
NOTES = (
    "Figures are min / median / max over whole processes, run in turn. Weights are random on both sides; the "
    "architecture is the same: PlainConvUNet of six levels, 32 to 320 channels, two convolutions per level, "
    "with nnU-Net's strides and patch; InstanceNorm in nnU-Net, folded renorm in ours.",
    "nnU-Net: nnUNetv2_predict -c 3d_fullres -f 0 --disable_tta -device cpu -npp 1 -nps 1; defaults "
    "otherwise: step 0.5, Gaussian weights, fp32; it takes as many threads as the machine has processors. "
    "'step 1' is the same without overlap (-step_size 1), its fastest public setting.",
    "medseg-brn: infer with its defaults (exact, auto precision, air skipped, memory of half of what is "
    "free), with --memory 1GB, and without skipping air ('all blocks'). Memory is what processes have "
    "resident; features on file are in the system's cache, which it can give up.",
    "With 24 classes everything is run once, and only the first three commands.",
)
MEMORY = "1GB"


def run_section(context: Context) -> None:
    """Measure with every number of classes."""
    assert context.peers is not None
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    for classes in CLASSES:
        folder = context.output / f"command-{classes}"
        shutil.rmtree(folder, ignore_errors=True)
        architecture = make_nnunet(context.peers, folder, classes)
        config = same_architecture(architecture)
        for name, skip_air in (("model", True), ("model-all", False)):
            make_model(folder / name, config, classes, PATCH_ZYX[::-1], skip_air=skip_air)
        runs = _measure(context, folder, whole=classes == CLASSES[0])
        raw[f"{SCAN_NAME}, {classes} classes"] = {"runs": runs, "architecture": architecture}
        rows += _tell(f"{SCAN_NAME}, {classes} classes", runs)
    table = make_table("infer beside nnUNetv2_predict", COLUMNS, rows)
    report("command", context.output, table, {**context.describe(), "measured": raw}, NOTES)


def make_nnunet(python: Path, folder: Path, classes: int) -> dict[str, Any]:
    """Make nnU-Net's model folder; return its plan's architecture."""
    model = folder / "results" / DATASET / TRAINER
    script = Path(__file__).with_name("peer_nnunet.py")
    spacing = ",".join([str(SPACING_MM)] * 3)
    arguments = [model, classes, spacing, ",".join(map(str, PATCH_ZYX))]
    made = run([python, script, *arguments], threads=1, environment=nnunet_environment(folder))
    found: dict[str, Any] = json.loads(made.output.strip().splitlines()[-1])
    return found


def nnunet_environment(folder: Path) -> dict[str, str]:
    """Return the variables that nnU-Net wants."""
    names = {"raw": "raw", "preprocessed": "preprocessed", "results": "results"}
    return {f"nnUNet_{name}": str(folder / place) for name, place in names.items()}


def same_architecture(nnunet: dict[str, Any]) -> NetworkConfig:
    """Return our network of the same shape; nnU-Net's axes are (Z, Y, X)."""
    return NetworkConfig(
        channels=nnunet["features_per_stage"],
        strides=tuple((x, y, z) for z, y, x in nnunet["strides"]),
        kernels=tuple((x, y, z) for z, y, x in nnunet["kernel_sizes"]),
        encoder_blocks=nnunet["n_conv_per_stage"],
        decoder_blocks=nnunet["n_conv_per_stage_decoder"],
        weight_standardization=False,
    )


def _measure(context: Context, folder: Path, *, whole: bool) -> dict[str, list[Run]]:
    """Time commands in turn on one scan, and see that each label map lies on the scan's grid."""
    scan = folder / "scan" / "case_0000.nii.gz"
    make_ct(scan, SHAPE, [SPACING_MM] * 3)
    made = folder / "ours.nii.gz"
    predict = Path(str(context.peers)).parent / "nnUNetv2_predict"
    results = folder / "nnunet"

    def nnunet(*options: object) -> Run:
        shutil.rmtree(results, ignore_errors=True)
        return run(
            [predict, "-i", scan.parent, "-o", results, "-d", DATASET, "-c", "3d_fullres", "-f", 0,
             "--disable_tta", "-device", "cpu", "-npp", 1, "-nps", 1, *options],
            context.threads,
            nnunet_environment(folder),
        )  # fmt: skip

    commands = {
        "medseg-brn": lambda: context.infer(folder / "model", scan, made),
        "nnU-Net": nnunet,
        f"medseg-brn --memory {MEMORY}": lambda: context.infer(
            folder / "model", scan, made, "--memory", MEMORY
        ),
    }
    if whole:
        commands |= {
            "medseg-brn, all blocks": lambda: context.infer(folder / "model-all", scan, made),
            "nnU-Net, step 1": lambda: nnunet("-step_size", 1),
        }
    runs = in_turn(commands, context.repeats if whole else 1)
    for path in (made, results / "case.nii.gz"):
        assert read_volume(path).array.shape == SHAPE, f"{path} is not on the scan's grid"
    return runs


def _tell(title: str, runs: dict[str, list[Run]]) -> list[list[str]]:
    """Return a table's rows: figures of each command, and nnU-Net's defaults against each of ours."""
    rows = [[title, "", "", ""]]
    figures = {"seconds": 1.0, "largest_bytes": 1e-9, "sum_bytes": 1e-9}
    for name, found in runs.items():
        cells = [
            spread((getattr(one, figure) * scale for one in found), ".2f")
            for figure, scale in figures.items()
        ]
        rows.append([f"  {name}", *cells])
    for name, found in runs.items():
        if name.startswith("medseg-brn"):
            cells = [
                spread(ratios(*([getattr(one, figure) for one in side] for side in (runs["nnU-Net"], found))))
                for figure in figures
            ]
            rows.append([f"  nnU-Net ÷ {name}", *cells])
    return rows
