"""One fold of a cross-validation: an ordinary run, whose folder says when it is done."""

import json
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg_brn.config import Experiment
from medseg_brn.errors import MedsegError
from medseg_brn.training.data import name_fold
from medseg_brn.training.run import train_run
from medseg_brn.volumes.atomic import write_text_atomic

DONE_NAME = "done.json"
"""Written last into a run folder: the experiment that was done in it."""

TRACEBACK_NAME = "traceback.txt"
"""Of an error that nobody expected, in the folder of the run that it ended."""


@dataclass(frozen=True)
class Fold:
    """A run to do.

    Attributes:
        experiment: with the fold that it holds out; None holds out nothing.
        folder: its run folder.
        data_folder: prepared cases, which all folds share.
    """

    experiment: Experiment
    folder: Path
    data_folder: Path

    @property
    def name(self) -> str:
        """`fold_0`, or `all` where nothing is held out."""
        return name_fold(self.experiment)

    @property
    def is_done(self) -> bool:
        """Whether this very experiment was brought to its end. A damaged mark is none."""
        try:
            plain = json.loads((self.folder / DONE_NAME).read_text(encoding="utf-8"))
            done = Experiment.model_validate(plain)  # an option that is newer than the mark has its default
        except (OSError, ValueError):
            return False
        return _without_workers(done) == _without_workers(self.experiment)


@dataclass(frozen=True)
class FoldResult:
    """How a fold went.

    Attributes:
        name: of the fold.
        error: why it failed; None where it is finished.
    """

    name: str
    error: str | None = None

    @property
    def status(self) -> Literal["finished", "failed"]:
        """In a word."""
        return "finished" if self.error is None else "failed"


def do_fold(fold: Fold) -> FoldResult:
    """Train, validate and report a fold; go on with one that was begun, skip one that is done.

    Whatever goes wrong is told as the result, so that the other folds are still done.
    """
    if fold.is_done:
        return FoldResult(fold.name)
    path = fold.folder / TRACEBACK_NAME
    try:
        path.unlink(missing_ok=True)  # of an earlier call
        resume = (fold.folder / "config.yaml").is_file()
        train_run(fold.experiment, fold.folder, resume=resume, data_folder=fold.data_folder)
    except MedsegError as error:
        return FoldResult(fold.name, str(error))
    except Exception as error:
        with suppress(MedsegError):  # a full disk may be what went wrong
            write_text_atomic(path, traceback.format_exc())
        return FoldResult(fold.name, f"{type(error).__name__}: {error} (the traceback stands in {path})")
    write_text_atomic(fold.folder / DONE_NAME, json.dumps(_without_workers(fold.experiment)) + "\n")
    return FoldResult(fold.name)


def _without_workers(experiment: Experiment) -> object:
    """The experiment in plain JSON types, but for what changes no result."""
    plain = experiment.model_dump(mode="json")
    del plain["patches"]["workers"]
    return plain
