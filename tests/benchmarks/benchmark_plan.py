"""How near a plan's prediction comes to the run: planned and trained back to back, on three datasets.

    python tests/benchmarks/benchmark_plan.py -o FOLDER [--hippocampus Task04_Hippocampus] [--steps 60]

For each dataset and repetition: `medseg-brn plan`, then `medseg-brn train` for `--steps` steps of the planned
experiment. Printed: predicted over measured, of the median seconds per step and of the peak memory, and the
medians over the repetitions. On a busy machine times differ from minute to minute, which no prediction can
know; repetitions and the spread tell how much of a ratio that is.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from medseg_brn.planning.prediction import check_prediction


def run_command(*arguments: object) -> None:
    """Run `medseg-brn` quietly."""
    command = [sys.executable, "-m", "medseg_brn", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")


def measure(dataset: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Plan, train, compare; what an earlier start of the benchmark finished is not done again."""
    config, run = folder / "plan.yaml", folder / "run"
    if not config.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run_command("plan", dataset, "-o", config, "--time", options.time, "--device", options.device)
    if not (run / "report.html").is_file():
        shorter = ("-s", f"training.steps={options.steps}", "-s", "training.validate_every=null")
        resumed = ("--resume",) if (run / "config.yaml").is_file() else ()
        run_command("train", config, "-o", run, *shorter, *resumed)
    return check_prediction(config.with_suffix(".plan.json"), run)


def main() -> None:
    """Print one line a repetition, and the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--hippocampus", help="folder of Task04_Hippocampus; left out where not given")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--time", default="30m", help="the plans' time budget")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    datasets = ["phantom_mri", "phantom_ct", *([options.hippocampus] if options.hippocampus else [])]
    for dataset in datasets:
        name = Path(dataset).name
        found = []
        for repetition in range(options.repetitions):
            folder = options.output / f"{name}_{repetition}"
            found.append(measure(dataset, folder, options))
            told = json.loads((folder / "plan.plan.json").read_text(encoding="utf-8"))
            print(
                f"{name:<20} {_tell(found[-1])}   patch {told['experiment']['patches']['size']}, "
                f"predicted {told['prediction']['step_seconds']:.3f} s, "
                f"{told['prediction']['peak_memory_mb']:.0f} MB",
                flush=True,
            )
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        print(f"{name:<20} {_tell(medians)}   median of {len(found)}", flush=True)


def _tell(ratios: dict[str, float]) -> str:
    return f"step {ratios['step_seconds']:.2f}  memory {ratios['peak_memory_mb']:.2f}"


if __name__ == "__main__":
    main()
