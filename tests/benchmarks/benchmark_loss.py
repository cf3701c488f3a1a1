"""Time and memory of the loss against MONAI's DiceCELoss, which computes the same.

    python tests/benchmarks/benchmark_loss.py

Forward and backward on made-up logits as a network in channels_last_3d leaves them. Blocks of both take
turns, so that whatever else the machine does falls on both; printed is the ratio of their processor times,
ours by MONAI's, with the middle half over pairs of blocks. Memory is by how much one forward and backward
pass raises the resident peak of a process of its own, the gradient to the logits included (Linux only).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from medseg_brn.cases.targets import Targets
from medseg_brn.training.losses import make_loss

Compute = Callable[[Tensor, Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=(32, 48, 32), help="patch size in voxels")
    parser.add_argument("--classes", type=int, nargs="+", default=(3, 120))
    parser.add_argument("--peak-of", nargs=3, metavar=("LOSS", "CLASSES", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        name, classes, dtype = options.peak_of
        print(measure_peak(name, int(classes), DTYPES[dtype], options))
        return
    print(f"batch size {options.batch_size}, patches {options.size}, one thread, torch {torch.__version__}")
    for classes in options.classes:
        for name, dtype in DTYPES.items():
            times = compare_times(classes, dtype, options)
            low, middle, high = statistics.quantiles([ours / theirs for ours, theirs in times], n=4)
            ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            peaks = [measure_peak_apart(loss, classes, name, options) for loss in ("ours", "monai")]
            print(
                f"K = {classes:<4} {name:<9} {1e3 * ours:8.1f} ms, MONAI {1e3 * theirs:8.1f} ms: "
                f"x {middle:.2f} ({low:.2f} to {high:.2f}); "
                f"memory {peaks[0]:6.1f} MiB, MONAI {peaks[1]:6.1f} MiB",
                flush=True,
            )


def make_losses(classes: int) -> dict[str, Compute]:
    """Ours and MONAI's, called as a training step calls them."""
    ours = make_loss(Targets(tuple(f"class {k}" for k in range(classes))))
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return {"ours": ours, "monai": lambda logits, labels: theirs(logits.float(), labels)}


def make_batch(classes: int, dtype: torch.dtype, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Logits (N, K, X, Y, Z) and classes (N, 1, X, Y, Z)."""
    torch.manual_seed(0)
    logits = torch.empty(
        options.batch_size, classes, *options.size, dtype=dtype, memory_format=torch.channels_last_3d
    )
    labels = torch.randint(classes, (options.batch_size, 1, *options.size))
    return logits.normal_().requires_grad_(), labels


def compare_times(classes: int, dtype: torch.dtype, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Processor seconds per forward and backward pass, ours and MONAI's, for each pair of blocks."""
    logits, labels = make_batch(classes, dtype, options)
    losses, repeats = make_losses(classes), max(1, 60 // classes)

    def time_block(name: str) -> float:
        start = time.process_time()
        for _ in range(repeats):
            logits.grad = None
            losses[name](logits, labels).backward()
        return (time.process_time() - start) / repeats

    for name in losses:
        time_block(name)
    return [(time_block("ours"), time_block("monai")) for _ in range(options.pairs)]


def measure_peak(name: str, classes: int, dtype: torch.dtype, options: argparse.Namespace) -> float:
    """MiB that one forward and backward pass adds to this process's resident peak."""
    loss = make_losses(classes)[name]
    small = argparse.Namespace(batch_size=1, size=(4, 4, 4))
    loss(*make_batch(classes, dtype, small)).backward()  # loads what the first pass loads
    logits, labels = make_batch(classes, dtype, options)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is resident now
    before = read_peak()
    loss(logits, labels).backward()
    return read_peak() - before


def read_peak() -> float:
    """Resident peak of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure_peak_apart(name: str, classes: int, dtype: str, options: argparse.Namespace) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", name, str(classes), dtype]
    command += ["--batch-size", str(options.batch_size), "--size", *map(str, options.size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
