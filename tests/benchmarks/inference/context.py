"""What every section is given."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.measuring import PROJECT, Run, describe_machine, run


@dataclass(frozen=True)
class Context:
    """Settings of one call of the benchmark.

    Attributes:
        output: where models, scans, results and JSON files go.
        peers: Python of the environment with nnunetv2 and MONAI; None for sections that need none.
        repeats: runs of everything that is timed.
        threads: of both sides.
        data: folder with `abdomen_ct` and `Task04_Hippocampus`.
        hippocampus_run: finished training run on hippocampus, with its `split.json`.
    """

    output: Path
    peers: Path | None
    repeats: int
    threads: int
    data: Path | None
    hippocampus_run: Path | None

    def ours(self, *arguments: object) -> Run:
        """Run `medseg-brn` with the benchmark's threads."""
        return run([sys.executable, "-m", "medseg_brn", *arguments], self.threads)

    def infer(self, model: Path, scan: Path, label_map: Path, *options: object) -> Run:
        """Run `medseg-brn infer` into a label map that is not there yet."""
        label_map.unlink(missing_ok=True)
        return self.ours(
            "infer", model, scan, "-o", label_map, "--threads", self.threads, "--device", "cpu", *options
        )

    def describe(self) -> dict[str, Any]:
        """Describe machine, versions and the state of the code."""
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True
        )
        machine = describe_machine(self.peers, self.threads)
        return {"machine": machine, "commit": commit.stdout.strip() or None, "repeats": self.repeats}


def make_peers(folder: Path) -> Path:
    """Return the Python of a new environment with nnunetv2, MONAI and the torch of this one."""
    python = folder / "bin" / "python"
    if not python.exists():
        from importlib.metadata import version

        torch = version("torch")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"torch=={torch}", "nnunetv2", "monai"], check=True)
    return python
