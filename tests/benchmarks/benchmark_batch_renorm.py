"""Times the renorm layer, forward and backward, beside nn.BatchNorm3d and element-wise code.

    python tests/benchmarks/benchmark_batch_renorm.py [--threads 2] [--seconds 4]

The three take turns in one process, so that what else the machine does falls on all alike. Printed are
medians in milliseconds with the middle half's spread, and the median over turns of the ratio of times
within a turn.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from medseg_brn.networks.batch_renorm import BatchRenorm3d

SHAPES = [(2, 32, 64, 64, 64), (2, 64, 32, 32, 32), (1, 32, 40, 56, 40), (4, 128, 8, 8, 8)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURN_SECONDS = 0.01  # several passes a turn where one is short


class ElementwiseRenorm(BatchRenorm3d):
    """The formula in ordinary tensor code, for comparison."""

    def forward(self, input: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        x = input.float()
        mean = x.mean((0, 2, 3, 4))
        std = (x.var((0, 2, 3, 4), correction=0) + self.eps).sqrt()
        with torch.no_grad():
            running_std = (self.running_var + self.eps).sqrt()
            r = (std / running_std).clamp(1 / self.r_max, self.r_max)
            d = ((mean - self.running_mean) / running_std).clamp(-self.d_max, self.d_max)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(std.square() - self.eps, self.momentum)
        x = (x - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
        return (x * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def time_turn(layer: nn.Module, x: Tensor, grad: Tensor, passes: int) -> float:
    """Seconds for one forward and backward pass, averaged over `passes`."""
    start = time.perf_counter()
    for _ in range(passes):
        layer(x).backward(grad)
        x.grad = None
    return (time.perf_counter() - start) / passes


def time_layers(layers: list[nn.Module], x: Tensor, grad: Tensor, seconds: float) -> list[list[float]]:
    """Times per layer, turn by turn, over about `seconds` (at least five turns)."""
    first = [min(time_turn(layer, x, grad, 1) for _ in range(2)) for layer in layers]
    passes = max(1, round(TURN_SECONDS / first[0]))
    turns = max(5, round(seconds / (passes * sum(first))))
    times = [[time_turn(layer, x, grad, passes) for layer in layers] for _ in range(turns)]
    return [list(column) for column in zip(*times, strict=True)]


def describe(times: list[float]) -> str:
    low, _, high = quantiles(times, n=4)
    return f"{1e3 * median(times):.3f} ({1e3 * low:.3f}-{1e3 * high:.3f})"


def ratio(times: list[float], reference: list[float]) -> float:
    return median(a / b for a, b in zip(times, reference, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="per row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"forward + backward, ms (middle half), {arguments.threads} threads")
    for column in (
        "shape",
        "layout",
        "dtype",
        "BatchNorm3d",
        "BatchRenorm3d",
        "ratio",
        "element-wise / ours",
    ):
        table.add_column(column)
    kinds: list[Callable[..., nn.Module]] = [nn.BatchNorm3d, BatchRenorm3d, ElementwiseRenorm]
    for shape, layout, dtype in itertools.product(SHAPES, FORMATS, DTYPES):
        x = torch.randn(shape).to(DTYPES[dtype], memory_format=FORMATS[layout])
        layers = [kind(shape[1]) for kind in kinds]
        grad = torch.randn_like(x)
        batch, ours, elementwise = time_layers(layers, x.requires_grad_(), grad, arguments.seconds)
        ratios = f"{ratio(ours, batch):.2f}", f"{ratio(elementwise, ours):.1f}"
        table.add_row(str(shape), layout, dtype, describe(batch), describe(ours), *ratios)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
