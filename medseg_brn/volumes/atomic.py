"""Outputs appear whole or not at all: written beside their place under a temporary name, then renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg_brn.errors import DataError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes the place of `path` when the block ends well.

    The temporary name ends in the name of `path`, so that writers which look at suffixes work, and begins
    with a dot, so that what a killed process leaves is no one's input. What the block writes there may be a
    file or a folder; when the block fails it is removed, and what was at `path` stays as it was. Missing
    parent folders are made. Replacing a folder takes two renames, between which neither the old nor the new
    one stands at `path`.

    Raises:
        DataError: the place cannot be written to, or any other file operation of the block fails.
    """
    path = Path(path)
    temporary = _beside(path)
    _make_parent(path)
    try:
        yield temporary
        _replace(temporary, path)
    except OSError as error:
        raise DataError(_tell(error, path, temporary)) from error
    finally:
        # What cannot be removed either is hidden by its name, and the first error is the one to tell.
        with suppress(OSError):
            _remove(temporary)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Writes a whole text file in UTF-8, or nothing.

    Raises:
        DataError: the place cannot be written to, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _tell(error: OSError, path: Path, temporary: Path) -> str:
    """What went wrong in writing `path`, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"Cannot write {path}: the disk is full; free some space."
    reason = error.strerror or str(error) or type(error).__name__
    file = error.filename
    # The temporary name is of no use to anyone; that of another file is.
    if isinstance(file, str | Path) and temporary not in (Path(file), *Path(file).parents):
        reason += f" ({file})"
    return f"Cannot write {path}: {reason}; correct this, or choose another place."


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Cannot make the folder {path.parent}: {error.strerror}; choose another place."
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DataError(
            f"Cannot write {path}: no permission to write into {path.parent}; choose another place."
        )


def _replace(temporary: Path, path: Path) -> None:
    if temporary.is_dir() != path.is_dir() and path.exists():
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise DataError(
            f"Cannot write {path}: {kinds[0]} is there, and {kinds[1]} is to be written; move it away."
        )
    if not path.is_dir():
        temporary.replace(path)
        return
    old = _beside(path)
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
