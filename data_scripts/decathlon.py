"""Download a task of the Medical Segmentation Decathlon, verify it, and unpack it.

    python data_scripts/decathlon.py Task04_Hippocampus -o data
    medseg-brn check data/Task04_Hippocampus

    data/
      Task04_Hippocampus/              what the toolkit reads, as it was published
      Task04_Hippocampus.tar.sha256    what its archive was; a later download must be the same
      Task04_Hippocampus.tar.part      an interrupted download, which the next one continues

An archive is checked against the SHA-256 given with `--sha256`; else against the one recorded at an earlier
download; else, as no SHA-256 of the archives is published, against the MD5 that MONAI publishes. An MD5 tells
a damaged download from a whole one, but no forged one: where that matters, pass a SHA-256 that you trust.
"""

import hashlib
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from medseg_brn.errors import DataError, MedsegError
from medseg_brn.volumes.atomic import atomic_path, write_text_atomic
from medseg_brn.volumes.download import CHUNK_BYTES, SHA256, download

BUCKET = "https://msd-for-monai.s3-us-west-2.amazonaws.com"

# As in monai.apps.DecathlonDataset (Apache-2.0); a test compares the two.
PUBLISHED_MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}

ProgressCallback = Callable[[str, int, int | None], None]
"""Called with the stage, the bytes done and, where known, the bytes in all."""


def fetch_task(task: str, output: Path, base_url: str, sha256: str | None, progress: ProgressCallback) -> str:
    """Downloads, verifies and unpacks one task into `output / task`; returns its archive's SHA-256.

    Raises:
        DataError: the server cannot be reached; an earlier record is damaged; the archive is not the expected
            one, or not safe to unpack.
    """
    archive, record = output / f"{task}.tar", output / f"{task}.tar.sha256"
    recorded = read_record(record) if sha256 is None and record.is_file() else None
    download(
        f"{base_url.rstrip('/')}/{task}.tar",
        archive,
        lambda done, total: progress("downloading", done, total),
        check="the task's name and --url",
    )
    try:
        found = verify(archive, sha256 or recorded, PUBLISHED_MD5[task], progress)
    except DataError:
        # Kept, it would be taken for a finished download by the next attempt.
        archive.unlink()
        raise
    write_text_atomic(record, f"{found}  {archive.name}\n")
    unpack(archive, output / task, progress)
    archive.unlink()
    return found


# ---------------------------------------------------------------- verify


def read_record(record: Path) -> str:
    """Returns the SHA-256 that an earlier download recorded.

    Raises:
        DataError: there is none in the file.
    """
    words = record.read_text(encoding="utf-8", errors="replace").split()
    if not words or not SHA256.fullmatch(words[0]):
        raise DataError(
            f"{record} holds no SHA-256, though an earlier download recorded one there; give it with "
            "--sha256, or remove the file to compare the archive with the published MD5."
        )
    return words[0]


def verify(archive: Path, sha256: str | None, md5: str, progress: ProgressCallback) -> str:
    """Returns the archive's SHA-256 once it, or without one to compare with the MD5, is what is expected.

    Raises:
        DataError: it is not.
    """
    found_sha256, found_md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    total, done = archive.stat().st_size, 0
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found_sha256.update(chunk)
            found_md5.update(chunk)
            done += len(chunk)
            progress("verifying", done, total)
    name, expected, found = (
        ("SHA-256", sha256.lower(), found_sha256.hexdigest())
        if sha256
        else ("MD5", md5, found_md5.hexdigest())
    )
    if found != expected:
        raise DataError(
            f"{archive.name} has the {name} {found}, and {expected} is expected: it is damaged, or was "
            "changed. The file is removed; download it again."
        )
    return found_sha256.hexdigest()


# ---------------------------------------------------------------- unpack


def unpack(archive: Path, folder: Path, progress: ProgressCallback) -> None:
    """Unpacks the files of an archive whose members all lie in a folder of `folder`'s name: all or nothing.

    Raises:
        DataError: the archive cannot be read; a member lies elsewhere, or is neither a file nor a folder.
    """
    total = archive.stat().st_size
    with atomic_path(folder) as unfinished:
        unfinished.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for member in _checked_members(tar, folder.name, archive):
                    tar.extract(member, unfinished, filter="data")
                    progress("unpacking", tar.offset, total)
        except tarfile.TarError as error:
            raise DataError(
                f"{archive} cannot be unpacked: {error}. Remove it and download it again."
            ) from None


def _checked_members(tar: tarfile.TarFile, task: str, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the members to unpack, named from inside the task's folder."""
    for member in tar:
        place = PurePosixPath(member.name)
        # macOS adds a ._ file of its own to each one; readers of folders would take them for volumes.
        if place.name.startswith("._"):
            continue
        if place.is_absolute() or ".." in place.parts or place.parts[:1] != (task,):
            raise DataError(
                f"{archive} holds '{member.name}', which lies outside '{task}/'; nothing of it is unpacked."
            )
        if not (member.isfile() or member.isdir()):
            raise DataError(
                f"{archive} holds '{member.name}', which is a link or a device; nothing of it is unpacked."
            )
        inside = PurePosixPath(*place.parts[1:])
        if inside.parts:
            yield member.replace(name=str(inside), deep=False)


# ---------------------------------------------------------------- command line


def command(
    task: Annotated[str, typer.Argument(help="Task's name, such as Task04_Hippocampus.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to unpack into.")],
    sha256: Annotated[str | None, typer.Option(help="SHA-256 that the archive must have.")] = None,
    url: Annotated[str, typer.Option(help="Where TASK.tar lies: a mirror of the default.")] = BUCKET,
) -> None:
    """Download, verify and unpack one task of the Medical Segmentation Decathlon.

    Tasks: Task01_BrainTumour, Task02_Heart, Task03_Liver, Task04_Hippocampus (30 MB, a good first one),
    Task05_Prostate, Task06_Lung, Task07_Pancreas, Task08_HepaticVessel, Task09_Spleen, Task10_Colon.
    Licence: CC-BY-SA 4.0.

    An interrupted download continues where it stopped: run the same command again. The archive must have the
    given SHA-256, or the one recorded at an earlier download, or else the MD5 published by MONAI; its SHA-256
    is then printed and recorded beside the data.
    """
    if task not in PUBLISHED_MD5:
        raise DataError(f"There is no task '{task}'; choose one of {', '.join(PUBLISHED_MD5)}.")
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise DataError(f"--sha256 {sha256} is no SHA-256: it has 64 hexadecimal digits.")
    if not url.startswith(("https://", "http://")):
        raise DataError(f"--url {url} is no web address: it begins with https:// or http://.")
    if (output / task).exists():
        typer.echo(f"{output / task} is there already; remove it to download it again.")
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(task, total=None)
        found = fetch_task(
            task,
            output,
            url,
            sha256,
            lambda stage, done, total: bars.update(bar, description=stage, completed=done, total=total),
        )
    typer.echo(f"{output / task}\nSHA-256 of its archive: {found}")


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 told in one message, 2 wrong usage, 130 interrupted."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except MedsegError as error:
        print(f"decathlon.py: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("decathlon.py: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
