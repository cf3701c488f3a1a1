"""MetaImage headers (.mha, .mhd), read as text to find damage before ITK does.

ITK reports damage in these files on stderr beside its error, and asks for all the memory that a header
announces.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.errors import DataError

HEADER_BYTES = 65536
"""A header is a few hundred bytes; what has none within these is another kind of file."""

LAST_FIELD = re.compile(rb"^ElementDataFile\s*=[ \t]*([^\r\n]*?)[ \t]*\r?(\n|\Z)", re.MULTILINE)
FIELD = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class MetaHeader:
    """What a MetaImage header says about its data."""

    data_path: Path | None
    """The file that holds the voxels; None where they are spread over several."""
    data_offset: int
    compressed: bool
    compressed_bytes: int

    @property
    def held_bytes(self) -> int | None:
        """Bytes of voxel data there are; None where they are spread over several files."""
        return None if self.data_path is None else self.data_path.stat().st_size - self.data_offset


def read_meta_header(path: Path) -> MetaHeader:
    """The data part of a MetaImage header.

    Raises:
        DataError: the file has no such header, or its voxels are in a file that does not exist.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    last = LAST_FIELD.search(head)
    fields = dict(FIELD.findall(head[: last.start()].decode("latin-1"))) if last else {}
    if not last or "NDims" not in fields:
        raise DataError(f"{path} is not a MetaImage: it has no MetaImage header; fetch or export it again.")
    name = last.group(1).decode("utf-8", "replace")
    compressed_bytes = fields.get("CompressedDataSize", "0")
    return MetaHeader(
        data_path=_data_path(path, name),
        data_offset=last.end() if name.upper() == "LOCAL" else 0,
        compressed=fields.get("CompressedData", "False").lower() in ("true", "1"),
        compressed_bytes=int(compressed_bytes) if compressed_bytes.isdigit() else 0,
    )


def check_meta_data(path: Path, header: MetaHeader, announced_bytes: int) -> None:
    """Raises DataError where a MetaImage holds less voxel data than its header announces."""
    held = header.held_bytes
    wanted = header.compressed_bytes if header.compressed else announced_bytes
    if held is not None and held < wanted:
        raise DataError(
            f"{path} is truncated: its header announces {wanted} bytes of voxels and {header.data_path} "
            f"holds {held}; fetch or export it again."
        )


def _data_path(path: Path, name: str) -> Path | None:
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        return None
    data_path = path.parent / name
    if not data_path.is_file():
        raise DataError(f"{path} keeps its voxels in {data_path}, which does not exist; put it there.")
    return data_path
