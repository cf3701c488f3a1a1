"""Write a CSV manifest of a BIDS dataset, which the toolkit then reads where it lies.

    python data_scripts/bids_manifest.py ds01 --image T1w --image FLAIR --label desc-lesion_mask -o my.csv
    medseg-brn check my.csv

    ds01/
      participants.tsv                                     participant_id, site, …
      sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz            image_0
      sub-01/ses-1/anat/sub-01_ses-1_acq-3d_FLAIR.nii.gz   image_1
      derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_desc-lesion_mask.nii.gz    label

A session of a participant is a case; where one has no sessions, the participant is. Files belong together by
their `sub-` and `ses-` parts alone, so a label map may be derived from any of the images.
"""

import csv
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medseg_brn.errors import DataError, MedsegError
from medseg_brn.volumes.atomic import write_text_atomic

VOLUME_ENDS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Session:
    """What a case is: the values of `sub-` and, where there is one, `ses-`."""

    subject: str
    session: str | None

    @property
    def name(self) -> str:
        """The case's name, as BIDS begins its files' names."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")


@dataclass(frozen=True)
class Row:
    """One case of the manifest; a None stands for an absent label map or an unknown site."""

    session: Session
    images: tuple[Path, ...]
    label: Path | None
    site: str | None


def collect_rows(
    root: Path,
    image_endings: list[str],
    label_ending: str | None,
    *,
    derivatives: Path,
    datatype: str,
    site_column: str,
) -> tuple[list[Row], list[str]]:
    """Returns the complete cases of a BIDS folder, and one line on each session that is left out.

    Args:
        root: the folder with `sub-*` in it.
        image_endings: how the images' names end before `.nii.gz`, one per channel: "T1w", "acq-3d_FLAIR".
        label_ending: likewise for the label maps; None takes none.
        derivatives: folder that holds the label maps, at any depth.
        datatype: folder within a session: "anat", "ct".
        site_column: column of `participants.tsv`.

    Raises:
        DataError: there is no such folder, or no session with exactly one file of each kind.
    """
    if not any(root.glob("sub-*")):
        raise DataError(f"{root} holds no sub-* folders; a BIDS dataset is the folder that holds them.")
    kinds = [(ending, _find(_raw_folders(root, datatype), ending)) for ending in image_endings]
    if label_ending:
        kinds.append((label_ending, _find([derivatives], label_ending)))
    sites = read_sites(root / "participants.tsv", site_column)
    rows, left_out = [], []
    for session in sorted(set().union(*(found for _, found in kinds)), key=lambda session: session.name):
        files = [found[session] for _, found in kinds]
        wrong = [
            _tell_wrong(ending, paths)
            for (ending, _), paths in zip(kinds, files, strict=True)
            if len(paths) != 1
        ]
        if wrong:
            left_out.append(f"{session.name} is left out: it has {' and '.join(wrong)}")
            continue
        images = tuple(paths[0] for paths in files[: len(image_endings)])
        label = files[-1][0] if label_ending else None
        rows.append(Row(session, images, label, sites.get(session.subject)))
    if not rows:
        wanted = ", ".join(ending for ending, _ in kinds)
        raise DataError(
            f"No session of {root} has one file of each of {wanted}; files found in '{datatype}' folders end "
            f"in {', '.join(_endings_present(root, datatype)) or 'nothing'}."
            + "".join(f" The first: {line}." for line in left_out[:1])
        )
    return rows, left_out


def read_sites(table: Path, column: str) -> dict[str, str]:
    """Returns the site of each subject (without its `sub-`), or nothing where table or column are absent.

    Raises:
        DataError: the table cannot be read.
    """
    if not table.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig")), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table of tab-separated UTF-8 text: {error}.") from None
    if rows and "participant_id" not in rows[0]:
        raise DataError(
            f"{table} has no column participant_id but {', '.join(rows[0])}; BIDS begins with it."
        )
    # BIDS writes n/a for what is not known.
    return {
        row["participant_id"].removeprefix("sub-"): row[column]
        for row in rows
        if row.get(column) not in (None, "", "n/a")
    }


def write_manifest(rows: Iterable[Row], path: Path) -> None:
    """Writes the manifest; its paths are relative to it, so that both can move together."""
    rows = list(rows)
    channels = len(rows[0].images)
    images = ["image"] if channels == 1 else [f"image_{channel}" for channel in range(channels)]
    with_label = any(row.label for row in rows)
    with_site = any(row.site for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *images, *(["label"] * with_label), *(["site"] * with_site), "patient"])
    for row in rows:
        label = [_relative(row.label, path)] if row.label else []
        site = [row.site or ""] if with_site else []
        paths = [_relative(image, path) for image in row.images]
        writer.writerow([row.session.name, *paths, *label, *site, f"sub-{row.session.subject}"])
    write_text_atomic(path, text.getvalue())


def _raw_folders(root: Path, datatype: str) -> list[Path]:
    return [*root.glob(f"sub-*/{datatype}"), *root.glob(f"sub-*/ses-*/{datatype}")]


def _find(folders: Iterable[Path], ending: str) -> dict[Session, list[Path]]:
    """Returns the files of each session whose names end so, below these folders; none for other sessions."""
    found: dict[Session, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.rglob(f"sub-*_{ending}.nii*")):
            session = _session_of(path)
            if session and path.name.endswith(tuple(f"_{ending}{end}" for end in VOLUME_ENDS)):
                found[session].append(path)
    return found


def _tell_wrong(ending: str, paths: list[Path]) -> str:
    """Says that there is no file, or which files there are where one is expected, and how to choose."""
    if not paths:
        return f"no {ending}"
    names = ", ".join(str(path) for path in paths)
    return (
        f"{len(paths)} files ending in '{ending}' ({names}; give more of the name, such as 'acq-3d_T1w', or "
        "one folder of label maps with --derivatives)"
    )


def _session_of(path: Path) -> Session | None:
    """The session that a file's name tells: sub-01_ses-2_run-1_T1w.nii.gz is of subject 01, session 2."""
    match = re.match(r"sub-([A-Za-z0-9+]+)_(?:ses-([A-Za-z0-9+]+)_)?", path.name)
    return Session(match[1], match[2]) if match else None


def _endings_present(root: Path, datatype: str) -> list[str]:
    names = (path.name for folder in _raw_folders(root, datatype) for path in folder.glob("sub-*.nii*"))
    return sorted({name.split(".")[0].rsplit("_", 1)[-1] for name in names})


def _relative(path: Path, manifest: Path) -> str:
    # Folders are resolved and the file is not: datalad's files are links to places that no one should name.
    place = path.parent.resolve() / path.name
    return Path(os.path.relpath(place, manifest.parent.resolve())).as_posix()


def command(
    dataset: Annotated[Path, typer.Argument(help="BIDS folder: the one that holds the sub-* folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="CSV", help="Manifest to write.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENDING", help="End of the images' names, T1w by default; repeat it for channels."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="ENDING", help="End of the label maps' names; without it, none are taken."),
    ] = None,
    derivatives: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the label maps [default: DATASET/derivatives]."),
    ] = None,
    datatype: Annotated[str, typer.Option(help="Folder of the images within a session.")] = "anat",
    site_column: Annotated[
        str, typer.Option(help="Column of participants.tsv that tells the site.")
    ] = "site",
) -> None:
    """Write a CSV manifest of a BIDS dataset: case, image columns, label, site, patient.

    `bids_manifest.py ds01 --image T1w --image FLAIR --label desc-lesion_mask -o lesions.csv`

    ENDING is the end of a file's name before .nii or .nii.gz: `T1w` finds sub-01_T1w.nii.gz and
    sub-01_acq-3d_T1w.nii.gz; `acq-3d_T1w` the latter alone. A session is a case if it has every image and the
    label map, each once; others are told and left out. Sessions of a participant share its `patient`, so
    folds never split them.
    """
    if output.suffix != ".csv":
        raise DataError(
            f"The manifest's name {output} does not end in .csv, by which it is known; rename it."
        )
    rows, left_out = collect_rows(
        dataset,
        image or ["T1w"],
        label,
        derivatives=derivatives or dataset / "derivatives",
        datatype=datatype,
        site_column=site_column,
    )
    write_manifest(rows, output)
    for line in left_out:
        typer.echo(line)
    typer.echo(f"{output}: {len(rows)} cases; check them with: medseg-brn check {output}")


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 told in one message, 2 wrong usage."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(command)
    try:
        app()
    except MedsegError as error:
        print(f"bids_manifest.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
