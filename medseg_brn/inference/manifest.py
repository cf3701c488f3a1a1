"""The run manifest: what was segmented, with which model, from which files, and what came of it.

A JSON file beside the label maps. It is written anew as cases end, whole or not at all, so that a run killed
at any moment goes on where it was.
"""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg_brn.errors import DataError, MedsegError
from medseg_brn.inference.machine import processor_name
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.reading import list_image_files

MANIFEST_NAME = "manifest.json"
FORMAT_NAME, FORMAT_VERSION = "medseg_brn inference manifest", 1
PACKAGES = ("medseg-brn", "torch", "numpy", "nibabel", "SimpleITK")
# A cohort's manifest is written at most this often; what ended since is done again after a kill.
WRITE_EVERY_SECONDS = 5.0


class Manifest:
    """What is known of a cohort's cases.

    Attributes:
        cases: by name, as they stand in the file.
    """

    def __init__(self, path: Path | None, model: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Take over what stands in the file, if it is there.

        Args:
            path: of the file; None keeps the manifest in memory.
            model: name and checksums of the model.
            settings: all that changes what is written for a case; plain JSON.

        Raises:
            DataError: the file is there and is no manifest.
        """
        self._path = path
        self._key = _digest_text(json.dumps([model, settings], sort_keys=True))
        self._head = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "model": dict(model),
            "settings": dict(settings),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "processor": processor_name(),
        }
        self._written = 0.0
        self.cases: dict[str, dict[str, Any]] = {} if path is None else _read_cases(path)

    def find_done(
        self, name: str, images: Sequence[Path], target: Path, site: str | None = None
    ) -> tuple[Path, ...] | None:
        """Return the files of a case that an earlier run made as this one would; None where it did not."""
        case = self.cases.get(name)
        if case is None or case.get("outcome") != "done" or case.get("settings_sha256") != self._key:
            return None
        if case.get("site") != site:
            return None
        outputs = case.get("outputs", [])
        if self._place(target) not in [output.get("path") for output in outputs]:
            return None
        if not _unchanged(case.get("images", []), [str(image.absolute()) for image in images]):
            return None
        if not _unchanged(self._absolute(outputs)):
            return None
        return tuple(Path(output["path"]) for output in self._absolute(outputs))

    def add(
        self,
        name: str,
        images: Sequence[Path],
        *,
        outputs: Sequence[Path],
        error: str | None,
        details: Mapping[str, Any],
    ) -> None:
        """Note what became of a case."""
        self.cases[name] = {
            "outcome": "done" if error is None else "failed",
            **({} if error is None else {"error": error}),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings_sha256": self._key,
            "images": [{"path": str(path.absolute()), "sha256": _try_digest(path)} for path in images],
            "outputs": [{"path": self._place(path), "sha256": digest(path)} for path in outputs],
            **details,
        }
        if time.monotonic() - self._written > WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file."""
        if self._path is None:
            return
        content = {**self._head, "cases": {name: self.cases[name] for name in sorted(self.cases)}}
        write_text_atomic(self._path, json.dumps(content, indent=1) + "\n")
        self._written = time.monotonic()

    def _place(self, output: Path) -> str:
        """An output's path as the file has it: from the manifest's folder, so that both can be moved."""
        folder = None if self._path is None else self._path.absolute().parent
        path = output.absolute()
        return str(path.relative_to(folder)) if folder and path.is_relative_to(folder) else str(path)

    def _absolute(self, outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        folder = Path() if self._path is None else self._path.parent
        return [{**output, "path": str(folder / output["path"])} for output in outputs]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of an image in several files, that of their names and contents."""
    files = list_image_files(path)
    if files == [path]:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    contents = []
    for part in files:
        with part.open("rb") as file:
            contents.append([part.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return _digest_text(json.dumps(contents))


def _try_digest(path: Path) -> str | None:
    """Return the digest; None of what cannot be read, which has been told as the case's error."""
    try:
        return digest(path)
    except (OSError, MedsegError):
        return None


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _unchanged(files: Sequence[Mapping[str, Any]], paths: Sequence[str] | None = None) -> bool:
    """Whether the files are there (and are those at `paths`), with the same contents."""
    if paths is not None and [file.get("path") for file in files] != list(paths):
        return False
    return all(file["sha256"] and _try_digest(Path(file["path"])) == file["sha256"] for file in files)


def _read_cases(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a run manifest: {error}; move it away, and all cases are done again"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise DataError(
            f'{path} is no run manifest (it lacks "format": "{FORMAT_NAME}"), and one would replace it; '
            "choose another folder"
        )
    cases = content.get("cases")
    if content.get("format_version") != FORMAT_VERSION or not isinstance(cases, dict):
        return {}
    return {name: case for name, case in cases.items() if _is_case(case)}


def _is_case(case: object) -> bool:
    """Whether an entry has the form that `Manifest.add` gives it; one that has not is done again."""
    if not isinstance(case, dict):
        return False
    images, outputs = case.get("images"), case.get("outputs")
    if not isinstance(images, list) or not isinstance(outputs, list):
        return False
    files = [*images, *outputs]
    return all(
        isinstance(file, dict) and isinstance(file.get("path"), str) and "sha256" in file for file in files
    )
