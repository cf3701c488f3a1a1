"""Cohorts: many scans, one after another or side by side, with one bad scan beside many good ones.

What was done is kept in a run manifest. A restarted run does not do again what stands there as done with the
same model, settings and images.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medseg_brn.errors import MedsegError
from medseg_brn.inference.inputs import InputCase, Job
from medseg_brn.inference.machine import peak_resident_bytes, reset_peak
from medseg_brn.inference.manifest import Manifest
from medseg_brn.inference.side_by_side import Backend, do_side_by_side

KILLED = (
    "A process was killed before this case was done, probably for want of memory; call the command again "
    "with fewer --jobs or less --memory, and it goes on with the cases that are not done"
)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: the scan.
        paths: the files written.
        error: why there are none.
        skipped: it had been done by an earlier run.
        details: what the manifest keeps besides: seconds, bytes, plan, measurements.
    """

    case: InputCase
    paths: tuple[Path, ...] = ()
    error: str | None = None
    skipped: bool = False
    details: dict[str, Any] = field(default_factory=dict)


class Segmenter(Protocol):
    """The three steps of a case.

    It is sent to other processes, so it holds settings and loads its model where it works.
    """

    def read(self, case: InputCase) -> Any:
        """Return the scan as the network sees it."""

    def segment(self, prepared: Any, progress: Callable[[int, int], None] | None) -> Any:
        """Return what the model says of it."""

    def write(self, segmented: Any, target: Path) -> tuple[tuple[Path, ...], dict[str, Any]]:
        """Write the results, the label map last; return the files and details for the manifest."""


def infer_cohort(
    segmenter: Segmenter,
    jobs: Sequence[Job],
    manifest: Manifest,
    *,
    processes: int = 1,
    backend: Backend = "processes",
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    on_progress: Callable[[InputCase, int, int], None] | None = None,
) -> list[Outcome]:
    """Segment every case and write what comes out; a case that fails is told and the others are done.

    Args:
        segmenter: reads, segments and writes.
        jobs: from `plan_jobs`.
        manifest: what earlier runs did; what this one does is added, and written every few seconds.
        processes: cases segmented side by side. With one, a case is read while the one before is segmented
            and written while the one after is.
        backend: processes of this machine, or those of a Ray cluster.
        on_outcome: called after each case, in the order in which they end.
        on_progress: called with (case, parts done, parts in all); only where there is one process.

    Returns:
        The outcomes in the order of the jobs.

    Raises:
        ConfigError: Ray is asked for and not installed.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = []
    for job in jobs:
        done = manifest.find_done(job.case.name, job.case.image_paths, job.target, job.case.site)
        if done is None:
            waiting.append(job)
        else:
            outcomes[job.case.name] = Outcome(job.case, done, skipped=True)
            on_outcome(outcomes[job.case.name])
    reset_peak()
    if processes > 1 or backend == "ray":
        work = partial(infer_case, segmenter)
        ended = do_side_by_side(work, waiting, processes=processes, backend=backend, on_killed=_killed)
    else:
        ended = _overlapped(segmenter, waiting, on_progress)
    for outcome in ended:
        outcomes[outcome.case.name] = outcome
        manifest.add(
            outcome.case.name,
            outcome.case.image_paths,
            outputs=outcome.paths,
            error=outcome.error,
            details=outcome.details | ({} if outcome.case.site is None else {"site": outcome.case.site}),
        )
        on_outcome(outcome)
    return [outcomes[job.case.name] for job in jobs]


def infer_case(segmenter: Segmenter, job: Job) -> Outcome:
    """Segment one case from its files to its files."""
    steps = _Steps(segmenter, job)
    return steps.write(steps.segment(steps.read(), None))


class _Steps:
    """One case on its way: an error in one step is kept, and the steps after it do nothing."""

    def __init__(self, segmenter: Segmenter, job: Job) -> None:
        self.job, self._segmenter = job, segmenter
        self._seconds: dict[str, float] = {}
        self._error: str | None = None
        # Of the process since the case before was segmented: reading this one, and what is read and written
        # meanwhile, is in it.
        self._peak_bytes = 0
        self._details: dict[str, Any] = {}
        self._paths: tuple[Path, ...] = ()

    def read(self) -> Any:
        return self._try("read", partial(self._segmenter.read, self.job.case))

    def segment(self, prepared: Any, on_progress: Callable[[InputCase, int, int], None] | None) -> Any:
        progress = on_progress and partial(on_progress, self.job.case)
        segmented = self._try("segment", partial(self._segmenter.segment, prepared, progress))
        self._peak_bytes = peak_resident_bytes()
        reset_peak()
        return segmented

    def write(self, segmented: Any) -> Outcome:
        written = self._try("write", partial(self._segmenter.write, segmented, self.job.target))
        if written is not None:
            self._paths, self._details = written
        details = {
            "seconds": {step: round(seconds, 3) for step, seconds in self._seconds.items()},
            "peak_memory_bytes": self._peak_bytes,
            **self._details,
        }
        return Outcome(self.job.case, self._paths, self._error, details=details)

    def _try(self, step: str, call: Callable[[], Any]) -> Any:
        if self._error is not None:
            return None
        start = time.perf_counter()
        try:
            return call()
        except MedsegError as error:
            self._error = str(error)
        except Exception as error:  # whatever one case does wrong, the others are still done
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._seconds[step] = time.perf_counter() - start
        return None


def _overlapped(
    segmenter: Segmenter, jobs: Sequence[Job], on_progress: Callable[[InputCase, int, int], None] | None
) -> Iterator[Outcome]:
    """Yield outcomes; while a case is segmented, the next one is read and the last one written."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[Outcome] | None = None
        following = [_Steps(segmenter, job) for job in jobs]
        reading = reader.submit(following[0].read) if following else None
        for number, steps in enumerate(following):
            assert reading is not None
            prepared = reading.result()
            ahead = following[number + 1 : number + 2]
            reading = reader.submit(ahead[0].read) if ahead else None
            segmented = steps.segment(prepared, on_progress)
            del prepared
            if writing is not None:
                yield writing.result()
            writing = writer.submit(steps.write, segmented)
            del segmented
        if writing is not None:
            yield writing.result()


def _killed(job: Job) -> Outcome:
    return Outcome(job.case, error=KILLED)
