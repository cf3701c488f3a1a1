"""How far runs in other processes have come, read from their folders."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from medseg_brn.cross_validation.fold import Fold

POLL_SECONDS = 2.0
# More than the longest row of a metrics.csv.
TAIL_BYTES = 4096


@contextmanager
def watch_folds(folds: Sequence[Fold], progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tells `progress` of each begun fold's steps, now and again, until the block ends."""
    ended = Event()

    def watch() -> None:
        while True:
            last = ended.wait(POLL_SECONDS)
            for fold in folds:
                step = read_last_step(fold.folder / "metrics.csv")
                if step is not None:
                    progress(fold.name, step, fold.experiment.training.steps)
            if last:
                return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def read_last_step(path: Path) -> int | None:
    """The step of the last whole row of a `metrics.csv`; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            rows = file.read().split(b"\n")[:-1]
        return int(rows[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):
        return None
