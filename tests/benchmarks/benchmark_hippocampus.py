"""Hippocampus, fold 0 of 5, as a user would do it: train, infer the held-out scans, evaluate.

    python tests/benchmarks/benchmark_hippocampus.py Task04_Hippocampus -o /tmp/hippocampus

Prints wall and processor time of training, its peak memory, the time of a step, the loader's share, and the
held-out cases' Dice by `infer` + `evaluate`. An interrupted benchmark goes on
from the last checkpoint; its times then cover the last part only, and it says so.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def run_timed(*arguments: object) -> tuple[float, float, float]:
    """Run `medseg-brn`; return wall and processor seconds, and the largest process's peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "medseg_brn", *map(str, arguments)], check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, processor, after.ru_maxrss / 1024


def evaluate(run: Path, scans: list[Path], references: Path) -> None:
    """Segment the scans with the run's model, evaluate, and print the mean Dice."""
    predictions = run.parent / f"{run.name}-predictions"
    wall, _, _ = run_timed("infer", run, *scans, "-o", predictions)
    metrics = predictions.with_suffix(".json")
    run_timed("evaluate", predictions, references, "-o", metrics)
    summary = json.loads(metrics.read_text())["summary"]
    per_class = "  ".join(f"{label} {found['dice_mean']:.4f}" for label, found in summary["classes"].items())
    low, high = summary["dice_interval_95"]
    print(
        f"held out   Dice {summary['dice_mean']:.4f} [{low:.4f}, {high:.4f}]  {per_class}"
        f"  infer {wall:.0f} s for {len(scans)} scans"
    )


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-s", "--set", action="append", default=[], help="override, as for train")
    options = parser.parse_args()
    overrides = [part for override in options.set for part in ("-s", override)]
    resumed = (options.output / "config.yaml").is_file()
    wall, processor, memory = run_timed(
        *("train", "hippocampus_mri", "-o", options.output, "-s", f"dataset.path={options.dataset}"),
        *overrides,
        *(["--resume"] if resumed else []),
    )
    rows = [line.split(",") for line in (options.output / "metrics.csv").read_text().splitlines()]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    steps = [float(value) for value in columns["seconds"]]
    waiting = statistics.fmean(float(value) for value in columns["loader_share"])
    print(f"\n{os.cpu_count()} cores{', resumed: times cover the last part' if resumed else ''}")
    print(
        f"training   {len(steps)} steps, {wall / 60:.1f} min wall, {processor / 60:.1f} min processor,"
        f" peak {memory:.0f} MB; step {statistics.median(steps):.3f} s"
        f" (quartiles {statistics.quantiles(steps)[0]:.3f}, {statistics.quantiles(steps)[2]:.3f}),"
        f" loader {waiting:.1%}"
    )
    held_out = json.loads((options.output / "split.json").read_text())["validation"]
    scans = [options.dataset / "imagesTr" / f"{case}.nii.gz" for case in held_out]
    evaluate(options.output, scans, options.dataset / "labelsTr")


if __name__ == "__main__":
    main()
