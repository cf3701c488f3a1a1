"""Model folders in archives: `.zip` and `.tar.gz`, of which nothing is taken but a model's own files.

    model.json, model.safetensors                                     of a model
    members/NAME/model.json, members/NAME/model.safetensors           of an ensemble's members
    README, LICENSE, NOTICE, CITATION, also as .md, .txt or .cff      for people

They may lie in one folder of any name. An archive that holds anything else is refused, not unpacked in part.
Of each file only its bytes are taken: no mode, no owner, no link, no name but those above.
"""

import gzip
import io
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from medseg_brn.errors import ModelError
from medseg_brn.models.names import DESCRIPTION_NAME, MEMBERS_NAME

SUFFIXES = (".zip", ".tar.gz", ".tgz")

MOST_PACKED_BYTES = 2_000_000_000
MOST_UNPACKED_BYTES = 4_000_000_000
MOST_ENTRIES = 1000
CHUNK_BYTES = 1 << 16
MOST_READ_BYTES = 2 * CHUNK_BYTES
"""At once; enough for the list of `MOST_ENTRIES`."""

_PARTS = r"model\.(?:json|safetensors)"
_FOR_PEOPLE = r"(?:README|LICEN[CS]E|NOTICE|CITATION)(?:\.md|\.txt|\.cff)?"
MODEL_FILE = re.compile(rf"(?:{_PARTS}|{MEMBERS_NAME}/[A-Za-z0-9_-]{{1,100}}/{_PARTS}|{_FOR_PEOPLE})")
_IN_ARCHIVE = re.compile(rf"(?:(?P<root>[^/]+)/)??(?P<file>{MODEL_FILE.pattern})")

# What macOS adds to archives; it is of no use and does no harm.
_PASSED_OVER = re.compile(r"(?:__MACOSX/.*|(?:.*/)?(?:\._[^/]*|\.DS_Store))", re.DOTALL)


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive.

    Attributes:
        name: as the archive has it.
        size: of its content, as the archive says.
        is_file: it is a plain file, and no link, device or the like.
        is_folder: it is a folder.
        open: gives the content.
    """

    name: str
    size: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes]]


def unpack_model(archive: Path, folder: Path) -> None:
    """Unpack the model in an archive into a folder, which is made and must not exist.

    What was written of it before it was refused stays: give a folder that is then removed.

    Args:
        archive: a `.zip` or `.tar.gz` file, told by its content and not by its name.
        folder: where `model.json` will be.

    Raises:
        ModelError: it is no such archive, damaged or too large, or holds something that is no part of a
            model; the message calls the archive "it".
    """
    folder.mkdir()
    try:
        with archive.open("rb") as file:
            _unpack(_list_entries(file), folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise ModelError(f"it is damaged, or no .zip or .tar.gz archive: {error}") from None
    except (RuntimeError, ValueError, OverflowError, struct.error) as error:
        # Encryption, unknown methods of compression, numbers that are none.
        raise ModelError(f"it cannot be unpacked: {error}") from None
    if not (folder / DESCRIPTION_NAME).is_file():
        raise ModelError(f"it holds no {DESCRIPTION_NAME}, so it is no model")


def copy_model(source: Path, folder: Path) -> None:
    """Copy the files of a model folder, and no others, into a folder, which is made.

    Args:
        source: with its `model.json`.
        folder: must not exist.
    """
    for path in (*source.glob("*"), *source.glob(f"{MEMBERS_NAME}/*/*")):
        inside = path.relative_to(source).as_posix()
        if MODEL_FILE.fullmatch(inside) and path.is_file():
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _unpack(entries: Iterable[_Entry], folder: Path) -> None:
    """Write each entry as it comes, once it is known to be harmless."""
    root: str | None = None
    unpacked_bytes, taken = 0, set[str]()
    for number, entry in enumerate(entries, 1):
        if number > MOST_ENTRIES:
            raise ModelError(f"it holds more than {MOST_ENTRIES} entries")
        name = _check_name(entry)
        unpacked_bytes += entry.size  # also of what is passed over: a compressed archive unpacks it to pass
        if entry.size < 0 or unpacked_bytes > MOST_UNPACKED_BYTES:
            raise ModelError(
                f"it unpacks to more than {MOST_UNPACKED_BYTES / 1e9:g} GB: {entry.name!r} alone has "
                f"{entry.size:,} bytes"
            )
        if name is None:
            continue
        own_root, inside = name
        if taken and own_root != root:
            raise ModelError(
                f"it holds files of several folders, such as {entry.name!r}, and one model is taken"
            )
        if inside.casefold() in taken:
            raise ModelError(f"it holds {entry.name!r} twice")
        root = own_root
        taken.add(inside.casefold())
        _write(entry, folder / inside)


def _check_name(entry: _Entry) -> tuple[str | None, str] | None:
    """Return the folder that the entry lies in, if any, and its place in the model; None to pass it over."""
    place = PurePosixPath(entry.name)  # without the "./" that tar writes
    if place.is_absolute() or ".." in place.parts or "\\" in entry.name or ":" in entry.name:
        raise ModelError(f"it holds {entry.name!r}, which reaches outside")
    if entry.is_folder or _PASSED_OVER.fullmatch(str(place)):
        return None
    if not entry.is_file:
        raise ModelError(f"it holds {entry.name!r}, which is a link or a device")
    match = _IN_ARCHIVE.fullmatch(str(place))
    if match is None:
        raise ModelError(
            f"it holds {entry.name!r}, which is no part of a model (model.json, model.safetensors, "
            "members/NAME/…, README, LICENSE)"
        )
    return match["root"], match["file"]


def _write(entry: _Entry, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as source, path.open("xb") as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _list_entries(file: IO[bytes]) -> Iterator[_Entry]:
    """Yield the entries in the archive's order, each to be read before the next one."""
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"PK":
        yield from _list_zip(file)
    elif start[:2] == b"\x1f\x8b":
        yield from _list_tar(file)
    else:
        raise zipfile.BadZipFile(f"it begins with {start!r}")


def _list_zip(file: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(_Careful(file)) as packed:
        for info in packed.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Other methods unpack what they read at once, however much that is.
                raise zipfile.BadZipFile(f"{info.filename!r} is packed by another method than deflate")
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            yield _Entry(
                info.orig_filename,
                info.file_size,
                is_file=not info.is_dir() and kind in (0, stat.S_IFREG),
                is_folder=info.is_dir(),
                open=partial(packed.open, info),
            )


def _list_tar(file: IO[bytes]) -> Iterator[_Entry]:
    with (
        gzip.GzipFile(fileobj=file) as unzipped,
        tarfile.open(fileobj=_Careful(unzipped), mode="r:") as packed,
    ):
        for member in packed:
            yield _Entry(
                member.name,
                member.size,
                is_file=member.isreg() and not member.issparse(),
                is_folder=member.isdir(),
                open=partial(_open_member, packed, member),
            )


def _open_member(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = packed.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name!r} has no content")
    return content


class _Careful(io.RawIOBase):
    """A file of which little is read at once and not more than is allowed in all.

    An archive says itself how long its headers are, and its readers ask for all of that at once.
    """

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read like a file.

        Raises:
            ModelError: more is asked for than a header has or an archive may unpack to.
        """
        if self._file.tell() > MOST_UNPACKED_BYTES + MOST_ENTRIES * CHUNK_BYTES:
            raise ModelError(f"it unpacks to more than {MOST_UNPACKED_BYTES / 1e9:g} GB")
        content = (
            b"" if size > MOST_READ_BYTES else self._file.read(size if size >= 0 else MOST_READ_BYTES + 1)
        )
        if max(size, len(content)) > MOST_READ_BYTES:
            raise ModelError(
                f"it has a header of {max(size, len(content)):,} bytes or more, and {MOST_READ_BYTES:,} are "
                "the most"
            )
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place of the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Archives are read at many places."""
        return True
