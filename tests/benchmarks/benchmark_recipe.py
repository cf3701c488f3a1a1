"""What the parts of the training recipe are worth: one changed at a time, each for the same processor time.

    python tests/benchmarks/benchmark_recipe.py Task04_Hippocampus -o recipe [--variants NAME…]

Every variant trains the shipped hippocampus experiment with one change, on one thread. The time of a step is
measured first, on made-up patches, and the number of steps follows from `--minutes`, so that a slower
network makes fewer steps. Printed: the mean Dice on the held-out fold's whole volumes, and its difference
from the recipe's with the 95 % t interval over cases (one seed: other seeds would vary it too). What is
finished is not trained again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment
from medseg_brn.experiment import load_experiment
from medseg_brn.inference.precision import choose_precision
from medseg_brn.models.architecture import build_network
from medseg_brn.training.losses import make_loss
from medseg_brn.training.run import train_run

STRONGER = (
    "patches.augmentation={rotation_degrees: 30, scale: [0.7, 1.4], spatial_probability: 0.9,"
    " intensity_probability: 0.5, noise: 0.2, brightness: 0.4, contrast: [0.6, 1.6], gamma: [0.6, 1.7]}"
)
TURNED = (
    "patches.augmentation.rotation_degrees=30",
    "patches.augmentation.scale=[0.7, 1.4]",
    "patches.augmentation.elastic_mm=3",
    "patches.augmentation.elastic_probability=0.3",
)
VARIANTS = {
    "recipe": (),
    "sgd": ("training.optimizer=sgd", "training.learning_rate=0.02", "training.decay=polynomial"),
    "polynomial": ("training.decay=polynomial",),
    "residual": ("network.encoder=residual", "network.encoder_blocks=1"),
    "no_deep_supervision": ("network.deep_supervision=false",),
    "batch_1": ("training.batch_size=1",),
    "batch_4": ("training.batch_size=4",),
    "plain_weights": ("network.weight_standardization=false",),
    "narrow": ("network.channels=[16, 32, 64, 128]",),
    "augmented": (STRONGER,),
    "turned": TURNED,
    "whole_scan": ("patches.size=[40, 56, 40]",),
    "instance": ("network.norm=instance",),
}


def main() -> None:
    """Train what is not trained yet and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="processor time of each training")
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dice = {name: train_variant(name, options) for name in options.variants}
    reference = dice.get("recipe")
    for name, values in dice.items():
        line = f"{name:<18} {values.mean():.4f}"
        if reference is not None and name != "recipe":
            difference = values - reference
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(difference)
            middle = difference.mean()
            line += f"  {middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f})"
        print(line)


def train_variant(name: str, options: argparse.Namespace) -> np.ndarray:
    """Mean Dice of each held-out case after training the variant; taken from its folder if it is there."""
    folder = options.output / name
    overrides = [f"dataset.path={options.dataset}", f"dataset.fold={options.fold}", "patches.workers=0"]
    experiment = load_experiment("hippocampus_mri", [*overrides, *VARIANTS[name]])
    validation = folder / "validation.json"
    if not validation.is_file():
        steps_file = folder.with_suffix(".steps")
        if not steps_file.is_file():
            steps_file.parent.mkdir(parents=True, exist_ok=True)
            steps_file.write_text(str(round(options.minutes * 60 / time_step(experiment))))
        steps = int(steps_file.read_text())
        print(f"{name}: {steps} steps", flush=True)
        training = experiment.training.model_copy(update={"steps": steps})
        experiment = experiment.model_copy(update={"training": training})
        train_run(experiment, folder, resume=folder.is_dir(), data_folder=options.output / "data")
    cases = json.loads(validation.read_text(encoding="utf-8"))["cases"]
    values = np.array([case["dice_mean"] for case in sorted(cases, key=lambda case: case["case"])])
    print(f"{name}: {values.mean():.4f}", flush=True)
    return values


def time_step(experiment: Experiment) -> float:
    """Processor seconds of a forward and backward pass and an optimizer's step, least of three times five."""
    config, dtype = experiment.training, choose_precision("auto", torch.device("cpu"))
    network = build_network(experiment.network, 1, 3).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters())
    loss = make_loss(
        Targets(("background", "anterior", "posterior")), deep_supervision=experiment.network.deep_supervision
    )
    image = torch.randn(config.batch_size, 1, *experiment.patches.size)
    classes = torch.randint(3, image.shape)
    times = []
    for _ in range(4):
        start = time.process_time()
        for _ in range(5):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                logits = network(image)
            loss(logits, classes).backward()
            optimizer.step()
            optimizer.zero_grad()
        times.append((time.process_time() - start) / 5)
    return min(times)


if __name__ == "__main__":
    main()
