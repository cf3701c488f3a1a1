"""The same network, the same weights: exact evaluation beside MONAI's sliding window, forward only."""

import sys
from pathlib import Path

import numpy as np
import torch
from inference.context import Context
from inference.measuring import PROJECT, Run, in_turn, make_table, ratios, report, run, spread
from inference.subjects import make_ct, make_model, normalize

from medseg_brn.config import NetworkConfig
from medseg_brn.volumes.reading import read_volume

SHAPE, SPACING_MM, CLASSES = (256, 256, 160), (1.5, 1.5, 1.5), 3
OPTIONS = {"channels": (32, 64, 128, 256), "encoder_blocks": 2, "decoder_blocks": 1}
SIDES = {"exact, bf16": "bf16", "exact, fp32": "fp32", "MONAI, defaults": "defaults", "MONAI, bf16": "bf16"}
NOTES = (
    "Seconds of the evaluation alone, in a process of its own, after a warm-up; min / median / max, run in "
    "turn. One network of four levels, 32 to 256 channels, random weights, renorm statistics of noise.",
    "MONAI: sliding_window_inference(roi_size 128³, overlap 0.5, mode gaussian, sw_batch_size 1), the "
    "network in evaluation mode as torch has it; defaults are fp32 and contiguous, bf16 is "
    "torch.autocast with channels_last_3d. Exact: folded, nothing skipped, probabilities made, half of "
    "the free memory.",
)


def run_section(context: Context) -> None:
    """Time all four in turn and compare their labels."""
    folder = context.output / "monai"
    scan, image = folder / "scan.nii.gz", folder / "image.npy"
    make_ct(scan, SHAPE, SPACING_MM)
    np.save(image, normalize(read_volume(scan).array)[None])
    config = NetworkConfig(**OPTIONS, weight_standardization=False)  # type: ignore[arg-type]
    network = make_model(folder / "model", config, CLASSES, (128, 128, 128))
    saved = folder / "network.pt"
    torch.save({"classes": CLASSES, "options": OPTIONS, "weights": network.state_dict()}, saved)

    def command(side: str, mode: str) -> Run:
        result, here = folder / f"{side.replace(', ', '-')}.npy", Path(__file__).parent
        if side.startswith("MONAI"):
            script, python, model = here / "peer_monai.py", context.peers, saved
        else:
            script, python, model = here / "our_forward.py", Path(sys.executable), folder / "model"
        arguments = [python, script, model, image, context.threads, mode, result]
        return run(arguments, context.threads, {"PYTHONPATH": str(PROJECT)})

    runs = in_turn(
        {side: lambda side=side, mode=mode: command(side, mode) for side, mode in SIDES.items()},
        context.repeats,
    )
    seconds = {side: [float(one.output.splitlines()[-1]) for one in found] for side, found in runs.items()}
    labels = {side: np.load(folder / f"{side.replace(', ', '-')}.npy") for side in SIDES}
    rows = [
        [
            side,
            spread(found, ".2f"),
            spread(ratios(found, seconds["exact, bf16"])),
            spread((one.largest_bytes / 1e9 for one in runs[side]), ".2f"),
            f"{(labels[side] == labels['exact, fp32']).mean():.3%}",
        ]
        for side, found in seconds.items()
    ]
    columns = ("forward only", "s", "÷ exact bf16", "process GB", "labels as exact fp32")
    table = make_table("256x256x160, same network and weights", columns, rows)
    report("monai", context.output, table, {**context.describe(), "seconds": seconds, "runs": runs}, NOTES)
