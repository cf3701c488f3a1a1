"""How long `medseg-brn --help` takes: the whole process, several times.

python tests/benchmarks/benchmark_start.py
"""

import statistics
import subprocess
import sys
import time


def main() -> None:
    """Print median, minimum and maximum over the runs, beside the bare interpreter's."""
    commands = {
        "medseg-brn --help": [sys.executable, "-m", "medseg_brn", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(11):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        median, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:<20} median {median:.3f} s, {low:.3f} to {high:.3f} s over {len(values)} runs")


if __name__ == "__main__":
    main()
