"""The CSV manifest: one row a case, with its files wherever they are.

    case,image_0,image_1,label,site,patient
    p01,scans/p01_t1.nii.gz,scans/p01_flair.nii.gz,labels/p01.nii.gz,Basel,A17

Every column that starts with `image` is a channel; `label`, `site` and `patient` are optional. Paths are
relative to the manifest. A file of the same name ending in `.json` may describe the labels and channels as
nnU-Net's `dataset.json` does: `cohort.json` beside `cohort.csv`.
"""

import csv
import difflib
import io
import itertools
import re
from pathlib import Path

from medseg_brn.cases.case import Case, Listing
from medseg_brn.cases.description import parse_description, read_json
from medseg_brn.errors import DataError

OPTIONAL_COLUMNS = ("label", "site", "patient")


def is_manifest(path: Path) -> bool:
    """Whether a path is a CSV file; what it holds is not looked at."""
    return path.suffix.lower() == ".csv" and path.is_file()


def list_manifest(path: Path) -> Listing:
    """Returns the cases of a CSV manifest.

    Raises:
        DataError: the file is not such a table, with the line and what is wrong with it.
    """
    header, rows = _read_table(path)
    images = _image_columns(header, path)
    cases = tuple(_parse_row(row, images, f"{path}, line {line}", path.parent) for line, row in rows)
    if not cases:
        raise DataError(f"{path} lists no cases: it has a header and no rows below it.")
    described = path.with_suffix(".json")
    if described.is_file():
        fields = parse_description(read_json(described), described, path.stem)
        return Listing(**fields, root=path.parent, cases=cases)
    return Listing(path.stem, path.parent, cases)


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the header and, for each row that is not blank, its line and its cells by column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Spreadsheets of many countries separate by semicolons.
        first_line = text.partition("\n")[0]
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=";" if "," not in first_line else ",", strict=True
        )
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV table in UTF-8: {error}; save it as such.") from None
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if not lines:
        raise DataError(f"{path} is empty; its first line names the columns: case,image,label.")
    header = lines[0][1]
    for line, cells in lines[1:]:
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {line} has {len(cells)} cells, but the header has {len(header)} columns; "
                "put a path that contains a comma in double quotes."
            )
    return header, [
        (line, dict(itertools.zip_longest(header, cells, fillvalue=""))) for line, cells in lines[1:]
    ]


def _image_columns(header: list[str], path: Path) -> list[str]:
    """Returns the image columns in the channels' order: by their number, or else as they stand."""
    images = [column for column in header if column.startswith("image")]
    if "case" not in header or not images or len(set(header)) < len(header):
        raise DataError(
            f"{path} has the columns {', '.join(header)}; name them 'case', 'image' (or one per channel: "
            "'image_0', 'image_1', …) and optionally 'label', 'site' and 'patient', each once."
        )
    for column in header:
        if column in ("case", *images, *OPTIONAL_COLUMNS):
            continue
        near = difflib.get_close_matches(column.lower(), OPTIONAL_COLUMNS, n=1, cutoff=0.75)
        if near and near[0] not in header:
            raise DataError(
                f"{path} has a column {column!r}; rename it to {near[0]!r} if it is that, or drop it."
            )
    numbers = {column: int(number[0]) for column in images if (number := re.search(r"\d+$", column))}
    return sorted(images, key=numbers.__getitem__) if len(numbers) == len(images) else images


def _parse_row(row: dict[str, str], images: list[str], place: str, folder: Path) -> Case:
    missing = [column for column in images if not row[column]]
    if missing or not row["case"]:
        empty = ", ".join(repr(column) for column in (["case"] if not row["case"] else missing))
        raise DataError(f"{place}: {empty} is empty; every case has a name and every channel.")
    try:
        return Case(
            name=row["case"],
            image_paths=tuple(folder / row[column] for column in images),
            label_path=folder / row["label"] if row.get("label") else None,
            site=row.get("site") or None,
            patient=row.get("patient") or None,
        )
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
