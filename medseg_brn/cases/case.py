"""One patient's files, and what is wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg_brn.cases.label_description import Labels
from medseg_brn.errors import DataError


@dataclass(frozen=True)
class Case:
    """The files of one examination: one image per channel and, where there is one, the label map.

    A 4D file with its channels last may stand for all channels at once.

    Raises:
        DataError: there is no image, or the name cannot be a file name: outputs are named after their case.
    """

    name: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    site: str | None = None
    patient: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name in {".", ".."} or any(mark in self.name for mark in "/\\\0\n"):
            raise DataError(
                f"Case name {self.name!r} cannot be a file name, and predictions are named after their case; "
                "use letters, digits, '-', '_' and '.'."
            )
        if not self.image_paths:
            raise DataError(f"Case {self.name!r} has no image; list at least one.")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a case, or with the dataset as a whole when `case` is empty."""

    case: str
    message: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True)
class Listing:
    """What a dataset's layout says by itself, before any image is read.

    Attributes:
        labels: what the values in the label maps mean; None where nothing describes them.
        channel_names: one per channel; None where nothing describes them.
        problems: where the description and the folder disagree.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    labels: Labels | None = None
    channel_names: tuple[str, ...] | None = None
    licence: str | None = None
    problems: tuple[Problem, ...] = ()
