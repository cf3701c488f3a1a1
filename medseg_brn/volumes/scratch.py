"""Arrays too large for memory: on files that nobody sees and that vanish with the process."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from medseg_brn.errors import DataError


class Scratch:
    """Makes arrays in memory, up to a limit, and on files beyond it.

    A file is removed from its folder as soon as it is made, so that nothing stays behind, not even of a
    killed process; its space is free again when the array on it and the `Scratch` are gone.
    """

    def __init__(self, folder: Path | None = None, in_memory_bytes: int | None = None) -> None:
        """Make no arrays yet.

        Args:
            folder: where files are made; the system's folder for temporary files by default.
            in_memory_bytes: what arrays in memory may take together; None never uses files by itself.
        """
        self._folder = Path(folder or tempfile.gettempdir())
        self._left = float("inf") if in_memory_bytes is None else in_memory_bytes
        self._maps: dict[tuple[int, int], mmap.mmap] = {}  # by first and last address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return an array with no particular values, in memory as long as the limit is not reached."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size > self._left:
            return self.file_array(shape, dtype)
        self._left -= size
        return np.empty(shape, dtype)

    def file_array(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return an array of zeros on a file.

        Raises:
            DataError: the file cannot be made, or the disk has no room for it.
        """
        size = max(1, prod(shape) * np.dtype(dtype).itemsize)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                _allocate(file.fileno(), size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise DataError(
                f"Cannot make a temporary file of {size / 1e9:.3g} GB in {self._folder}: {error.strerror}; "
                "free some space there, name another folder by the environment variable TMPDIR, or allow "
                "more memory, so that no files are needed"
            ) from error
        array = np.frombuffer(mapped, dtype, prod(shape)).reshape(shape)
        self._maps[np.lib.array_utils.byte_bounds(array)] = mapped
        return array

    def release(self, array: np.ndarray) -> None:
        """Give back the memory that an array's file is cached in; its values stay. Others are left alone.

        Args:
            array: from here, or a view of one.
        """
        first, last = np.lib.array_utils.byte_bounds(array)
        for (start, stop), mapped in self._maps.items():
            if start <= first and last <= stop and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the files; the arrays on them stay valid as long as they are held."""
        self._maps.clear()


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its size and, where the system can, its room on the disk: a full one is told here."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
