"""Arrays as text inside a page: deflated, in base64."""

import base64
import zlib
from collections.abc import Callable, Iterator

import numpy as np

LEVEL = 6
SLAB_VALUES = 2**22


def pack(array: np.ndarray, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """The bytes of an array, deflated (zlib), in base64 without line breaks.

    The lowest bytes of all values come first, then the next ones: neighbouring high bytes are mostly equal,
    which makes the text a sixth shorter than whole values do.

    Args:
        array: (X, Y, Z) uint8 or uint16; X runs fastest in the text.
        progress: called with (parts done, parts in all).
    """
    compressor = zlib.compressobj(LEVEL)
    pieces, left = [], b""
    parts = array.dtype.itemsize * -(-array.shape[2] // _planes(array))
    for number, part in enumerate(_byte_parts(array), start=1):
        left += compressor.compress(part)
        if number == parts:
            left += compressor.flush()
        # Three bytes are four characters: only at the end may there be a rest.
        whole = len(left) if number == parts else len(left) // 3 * 3
        pieces.append(base64.b64encode(left[:whole]).decode("ascii"))
        left = left[whole:]
        progress(number, parts)
    return "".join(pieces)


def _planes(array: np.ndarray) -> int:
    """Planes along Z that are packed at once."""
    return max(1, SLAB_VALUES // (array.shape[0] * array.shape[1]))


def _byte_parts(array: np.ndarray) -> Iterator[bytes]:
    for byte in range(array.dtype.itemsize):
        for first in range(0, array.shape[2], _planes(array)):
            slab = array[..., first : first + _planes(array)]
            yield (slab >> (8 * byte)).astype(np.uint8).tobytes(order="F")
