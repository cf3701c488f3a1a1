"""Trains the planned experiment and nnU-Net on one fold, side by side: same machine, same wall-clock time.

    python -m venv peer && peer/bin/pip install nnunetv2
    python tests/benchmarks/benchmark_training.py Task04_Hippocampus -o OUT --nnunet peer/bin/python

Both run at the same time, each on cores of its own (`--cores`; Linux only). Ours is `medseg-brn plan DATASET
--time MINUTES`, then `medseg-brn train`: all that `train` does counts, preparation of cases and validation
too. nnU-Net plans and prepares before its time begins, and trains for all of it (`training/peer_nnunet.py`).
Both are judged by `medseg-brn evaluate` on the whole volumes of the held-out cases. What is done is not done
again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from medseg_brn.cases.dataset import Dataset, read_dataset
from medseg_brn.experiment import load_experiment
from medseg_brn.training.data import split_dataset

PEER = Path(__file__).parent / "training" / "peer_nnunet.py"
DATASET_ID, DATASET_NAME = "4", "Dataset004_Peer"


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="in the Decathlon layout, one channel")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--nnunet", type=Path, required=True, help="Python that has nnunetv2")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cores", type=int, default=1, help="of each of the two")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    plan = options.output / "plan.yaml"
    if not plan.is_file():
        run_on(options, 0, medseg("plan", options.dataset, "-o", plan, "--time", f"{options.minutes:g}m"))
    dataset = read_dataset(options.dataset)
    experiment = load_experiment(plan, [f"dataset.fold={options.fold}"])
    training, held_out = split_dataset(dataset, experiment, options.output / "data", lambda *_: None)
    names = [case.name for case in held_out]
    prepare_nnunet(options, dataset, [case.name for case in training], names)
    train_side_by_side(options, plan)
    report(options, dataset, names)


def medseg(*arguments: object) -> list[str]:
    """Our command line."""
    return [sys.executable, "-m", "medseg_brn", *map(str, arguments)]


def run_on(options: argparse.Namespace, place: int, command: list[str]) -> None:
    """Run to its end on the cores of one of the two."""
    if start(options, place, command, options.output / f"{place}.log").wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {options.output / f'{place}.log'}")


def start(options: argparse.Namespace, place: int, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command on cores of its own, with as many threads."""
    cores = set(range(place * options.cores, (place + 1) * options.cores))
    folder = (options.output / "nnunet").absolute()
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {
        **os.environ,
        **{name: str(folder / name) for name in names},
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
        "OMP_NUM_THREADS": str(options.cores),
    }
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=file,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def prepare_nnunet(
    options: argparse.Namespace, dataset: Dataset, training: list[str], held_out: list[str]
) -> None:
    """Lay the dataset out as nnU-Net wants it, let it plan and prepare, and give it our split."""
    prepared = options.output / "nnunet" / "nnUNet_preprocessed" / DATASET_NAME
    if (prepared / "splits_final.json").is_file():
        return
    raw = options.output / "nnunet" / "nnUNet_raw" / DATASET_NAME
    for folder in ("imagesTr", "labelsTr", "held_out"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in dataset.labelled_cases:
        assert case.label_path is not None
        image = case.image_paths[0].absolute()
        link(raw / "imagesTr" / f"{case.name}_0000.nii.gz", image)
        link(raw / "labelsTr" / f"{case.name}.nii.gz", case.label_path.absolute())
        if case.name in held_out:
            link(raw / "held_out" / f"{case.name}_0000.nii.gz", image)
    description = {
        "channel_names": {"0": dataset.modalities[0].upper()},
        "labels": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        "numTraining": len(dataset.labelled_cases),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    planner = options.nnunet.absolute().parent / "nnUNetv2_plan_and_preprocess"
    run_on(options, 1, [str(planner), "-d", DATASET_ID, "-c", "3d_fullres", "-np", "1"])
    splits = [{"train": training, "val": held_out}] * (options.fold + 1)
    (prepared / "splits_final.json").write_text(json.dumps(splits))


def link(path: Path, target: Path) -> None:
    """Make a symbolic link, once."""
    if not path.is_symlink():
        path.symlink_to(target)


def train_side_by_side(options: argparse.Namespace, plan: Path) -> None:
    """Train both at the same time; the seconds that ours took are kept."""
    peer = [str(options.nnunet.absolute()), str(PEER)]
    running = {}
    if not (options.output / "ours.seconds").is_file():
        train = medseg("train", plan, "-o", options.output / "ours", "-s", f"dataset.fold={options.fold}")
        running["ours"] = start(options, 0, train, options.output / "ours.log")
    if not (options.output / "nnunet.done").is_file():
        train = [*peer, "train", DATASET_ID, str(options.fold), str(options.minutes * 60)]
        running["nnunet"] = start(options, 1, train, options.output / "nnunet.log")
    begin = time.perf_counter()
    if "ours" in running and running["ours"].wait() == 0:
        (options.output / "ours.seconds").write_text(f"{time.perf_counter() - begin:.0f}")
    if "nnunet" in running and running["nnunet"].wait() == 0:
        (options.output / "nnunet.done").touch()
    for name, process in running.items():
        if process.returncode != 0:
            raise SystemExit(f"training {name} failed; see {options.output / f'{name}.log'}")


def report(options: argparse.Namespace, dataset: Dataset, held_out: list[str]) -> None:
    """Segment with nnU-Net, evaluate everything alike, and print a row each."""
    predictions = options.output / "nnunet-predictions"
    if not (predictions / "done").is_file():
        raw = options.output / "nnunet" / "nnUNet_raw" / DATASET_NAME
        peer = [str(options.nnunet.absolute()), str(PEER), "predict", DATASET_ID, str(options.fold)]
        run_on(options, 1, [*peer, str(raw / "held_out"), str(predictions)])
        (predictions / "done").touch()
    references = next(case.label_path for case in dataset.labelled_cases if case.name == held_out[0])
    assert references is not None
    seconds = float((options.output / "ours.seconds").read_text())
    print(f"fold {options.fold}, {len(held_out)} held-out cases, {options.cores} core(s) each")
    print((options.output / "nnunet.log").read_text().splitlines()[-1])
    for name, folder in (
        (f"medseg-brn, {seconds / 60:.1f} min in all", options.output / "ours" / "validation"),
        (f"nnU-Net, {options.minutes:g} min", predictions / "plain"),
        ("nnU-Net, mirrored", predictions / "mirrored"),
    ):
        metrics = options.output / f"{folder.parent.name}-{folder.name}.json"
        subprocess.run(medseg("evaluate", folder, references.parent, "-o", metrics), check=True)
        summary = json.loads(metrics.read_text(encoding="utf-8"))["summary"]
        low, high = summary["dice_interval_95"]
        classes = "  ".join(
            f"{label} {found['dice_mean']:.4f}" for label, found in summary["classes"].items()
        )
        print(f"{name:<32} Dice {summary['dice_mean']:.4f} ({low:.4f} to {high:.4f})  {classes}")


if __name__ == "__main__":
    main()
