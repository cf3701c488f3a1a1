"""Files of `torch.save`, of which only tensors and plain values are taken: no class of theirs is made."""

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from medseg_brn.errors import ModelError

MOST_BYTES = 1 << 34
"""Of a file. The largest networks of the zoo have some 100 million weights, for each of which an optimizer
keeps two numbers more."""

# A NumPy number, as nnU-Net's logs have, is pickled as a call of `scalar` with a dtype and its bytes. Both
# make numbers only; older versions of NumPy called the module otherwise.
NUMBERS: tuple[Callable[..., Any] | tuple[Callable[..., Any], str], ...] = (
    np.dtype,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
)
UNKNOWN_CLASS = re.compile(r"GLOBAL (\S+)")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the mapping that a file of `torch.save` holds, read by torch's own unpickler for weights only.

    That one makes tensors, plain containers, numbers and text, and calls nothing else that a file names.

    Raises:
        ModelError: there is no such file, it is larger than `MOST_BYTES`, names anything else, is damaged, or
            holds something other than a mapping with names.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most")
        _refuse_hidden_size(path)
        with torch.serialization.safe_globals(list(NUMBERS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the file's format
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a file made to do harm fails in any way
        raise ModelError(_tell(path, error)) from None
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ModelError(
            f"{path} holds {type(found).__name__}, and a mapping of names to tensors is expected"
        )
    return dict(found)


def check_tensors(weights: object, place: str) -> dict[str, Tensor]:
    """Return the weights where they are tensors by name: integers as they are, all others as float32.

    Raises:
        ModelError: they are something else.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ModelError(f"{place} are {type(weights).__name__}, and tensors by name are expected")
    found = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not _is_dense(tensor):
            raise ModelError(f"{place}: {name!r} is {type(tensor).__name__}, and a dense tensor is expected")
        found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def _refuse_hidden_size(path: Path) -> None:
    """Raise ModelError for an archive whose parts are compressed or overlap; `torch.save` stores them as they
    are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    total = sum(part.file_size for part in parts)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or total > path.stat().st_size:
        raise ModelError(
            f"{path} is refused: its parts are compressed or overlap, {total:,} bytes in a file of "
            f"{path.stat().st_size:,}, which torch.save does not do"
        )


def _is_dense(tensor: Tensor) -> bool:
    """Whether each number has a place of its own; a repeated one may stand for more than memory holds."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _tell(path: Path, error: Exception) -> str:
    unknown = UNKNOWN_CLASS.search(str(error))
    if unknown is not None:
        return (
            f"{path} is refused: it wants {unknown[1]} to be called on loading, and weights are tensors and "
            "plain values only; nothing of it was executed. Save it again as a plain state dict where it "
            "came from, if you trust it there"
        )
    reason = str(error).partition("\n")[0][:200]
    return (
        f"{path} cannot be read as weights: {reason or type(error).__name__}; copy it again from its source"
    )
