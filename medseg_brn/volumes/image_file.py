"""What every format answers when a file is opened: its grid at once, its values when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid

LARGEST_DEFLATE_RATIO = 1032
"""Deflate, the method of gzip and zlib, never shrinks data further than this."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk of which only the header has been read."""

    path: Path
    grid: Grid
    channels: int
    read_array: Callable[[Scratch], np.ndarray]
    """Reads the values, (X, Y, Z), or (X, Y, Z, channels) for several channels; DataError when damaged.

    NIfTI's values go where the `Scratch` puts them; those of other formats, read by libraries, into memory.
    """


def check_size(path: Path, shape: Sequence[int], itemsize: int, *, compressed: bool) -> None:
    """Raises DataError where a header announces more voxels than the file can hold.

    This finds truncated files before they are read, and damaged headers before they ask for all memory.
    """
    announced = prod(int(size) for size in shape) * itemsize
    size = path.stat().st_size
    if announced > size * (LARGEST_DEFLATE_RATIO if compressed else 1):
        raise DataError(
            f"{path} is truncated or damaged: its header announces {'x'.join(map(str, shape))} values, "
            f"{announced} bytes, and the file has {size} bytes; fetch or export the file again."
        )


def reason(error: Exception) -> str:
    """The last line of a library's message, which names the cause; without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
