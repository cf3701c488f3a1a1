"""What the probes cost while a network trains: steps watched as a comparison does against steps unwatched.

    python tests/benchmarks/benchmark_probes.py

One network per norm trains on made-up patches; blocks of steps with and without a watcher take turns, so
that whatever else the machine does falls on both. Printed: the ratio of their median times per step, with the
middle half over pairs of blocks; for one sampled step in `--every`, and for every step sampled.
"""

import argparse
import statistics
import time

import torch

from medseg_brn.cases.targets import Targets
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.probes.watching import Watcher
from medseg_brn.training.losses import make_loss

NORMS = ("batch_renorm", "batch", "mabn")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=15, help="steps between samples, as in a run of 300")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks of that many steps")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=(32, 48, 32), help="patch size in voxels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batch size {options.batch_size}, patches {options.size}, one thread, torch {torch.__version__}")
    for norm in NORMS:
        for every in (options.every, 1):
            ratios = compare(norm, every, options)
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{norm:<14} sampled every {every:>3} steps: x {middle:.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )


def compare(norm: str, every: int, options: argparse.Namespace) -> list[float]:
    """Time of a block of watched steps relative to one of unwatched steps, for each pair."""
    torch.manual_seed(0)
    network = UNet3d(1, 3, (12, 24, 48, 96), norm=norm).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = make_loss(Targets(("background", "anterior", "posterior")))
    images = torch.randn(options.batch_size, 1, *options.size)
    classes = torch.randint(3, (options.batch_size, 1, *options.size))
    watcher = Watcher(network, every)

    def time_block(watched: bool) -> float:
        start = time.perf_counter()
        for step in range(1, options.every + 1):
            if watched:
                watcher.before_step(step)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            loss(logits, classes).backward()
            optimizer.step()
            optimizer.zero_grad()
            if watched:
                watcher.after_step(step)
        return time.perf_counter() - start

    time_block(False)
    return [time_block(True) / time_block(False) for _ in range(options.pairs)]


if __name__ == "__main__":
    main()
