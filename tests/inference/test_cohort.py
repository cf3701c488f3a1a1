"""Cohorts of cases that take no network: what is done, told, passed over and side by side."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.errors import DataError
from medseg_brn.inference.cohort import infer_cohort
from medseg_brn.inference.inputs import InputCase, Job
from medseg_brn.inference.manifest import Manifest

try:
    import cloudpickle
except ImportError:  # before joblib 1.6 it came inside
    from joblib.externals import cloudpickle

# Other processes cannot import a test's file, wherever the tests are run from: its classes are sent whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Doubler:
    """Segments text files: reads a number, doubles it, writes it. Some files are bad in some step."""

    factor: int = 2

    def read(self, case: InputCase) -> int:
        text = case.image_paths[0].read_text()
        if not text.isdigit():
            raise DataError(f"{case.name} holds {text!r}, which is no number")
        return int(text)

    def segment(self, prepared: int, progress) -> int:
        if prepared == 13:
            raise MemoryError("needs 3 TiB")
        if progress is not None:
            progress(1, 1)
        return self.factor * prepared

    def write(self, segmented: int, target: Path):
        if segmented == self.factor * 99:
            raise DataError(f"Cannot write {target}: the disk is full; free some space.")
        target.parent.mkdir(exist_ok=True)
        target.write_text(str(segmented))
        return (target,), {"plan": "by hand"}


def _jobs(folder: Path, **texts: str) -> list[Job]:
    jobs = []
    for name, text in texts.items():
        path = folder / f"{name}.txt"
        path.write_text(text)
        jobs.append(Job(InputCase(name, (path,), path.name), folder / "out" / path.name))
    return jobs


def _manifest(folder: Path, model: str = "first") -> Manifest:
    return Manifest(folder / "out" / "manifest.json", {"name": model}, {"precision": "float32"})


def _run(folder: Path, jobs: list[Job], segmenter=None, model: str = "first", **options):
    manifest = _manifest(folder, model)
    outcomes = infer_cohort(segmenter or Doubler(), jobs, manifest, **options)
    manifest.write()
    return outcomes


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_cases_are_told_and_the_others_are_done(tmp_path, processes):
    jobs = _jobs(tmp_path, a="1", bad="x", huge="13", full="99", z="21")
    seen = []
    outcomes = _run(tmp_path, jobs, processes=processes, on_outcome=seen.append)
    assert [outcome.case.name for outcome in outcomes] == ["a", "bad", "huge", "full", "z"]
    assert sorted(seen, key=lambda one: one.case.name) == sorted(outcomes, key=lambda one: one.case.name)
    assert [outcome.error for outcome in outcomes] == [
        None,
        "bad holds 'x', which is no number",
        "MemoryError: needs 3 TiB",
        f"Cannot write {tmp_path / 'out' / 'full.txt'}: the disk is full; free some space.",
        None,
    ]
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")} == {
        "a.txt": "2",
        "z.txt": "42",
    }
    cases = _manifest(tmp_path).cases
    assert [cases[name]["outcome"] for name in ("a", "bad", "huge", "full", "z")] == [
        "done", "failed", "failed", "failed", "done",
    ]  # fmt: skip
    assert cases["a"]["plan"] == "by hand"
    assert set(cases["a"]["seconds"]) == {"read", "segment", "write"}
    assert set(cases["bad"]["seconds"]) == {"read"}
    assert cases["a"]["peak_memory_bytes"] > 1e6


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path):
    jobs = _jobs(tmp_path, a="1", b="x")
    _run(tmp_path, jobs)
    (tmp_path / "b.txt").write_text("2")
    outcomes = _run(tmp_path, jobs, segmenter=Doubler(factor=3))
    assert [(outcome.skipped, outcome.error) for outcome in outcomes] == [(True, None), (False, None)]
    assert outcomes[0].paths == (tmp_path / "out" / "a.txt",)
    assert [(tmp_path / "out" / name).read_text() for name in ("a.txt", "b.txt")] == ["2", "6"]


@pytest.mark.parametrize("change", ["model", "image", "output", "output gone", "manifest gone"])
def test_a_case_is_done_again_where_anything_about_it_is_another(tmp_path, change):
    jobs = _jobs(tmp_path, a="1")
    _run(tmp_path, jobs)
    if change == "image":
        (tmp_path / "a.txt").write_text("5")
    elif change == "output":
        (tmp_path / "out" / "a.txt").write_text("corrected by hand")
    elif change == "output gone":
        (tmp_path / "out" / "a.txt").unlink()
    elif change == "manifest gone":
        (tmp_path / "out" / "manifest.json").unlink()
    (outcome,) = _run(tmp_path, jobs, model="second" if change == "model" else "first")
    assert not outcome.skipped
    assert (tmp_path / "out" / "a.txt").read_text() == ("10" if change == "image" else "2")


def test_the_next_case_is_read_while_one_is_segmented(tmp_path):
    read = {name: threading.Event() for name in ("a", "b")}

    class Waiting(Doubler):
        def read(self, case):
            read[case.name].set()
            return super().read(case)

        def segment(self, prepared, progress):
            # It would wait for ever if b were read only after a.
            assert prepared != 1 or read["b"].wait(60)
            return super().segment(prepared, progress)

    outcomes = _run(tmp_path, _jobs(tmp_path, a="1", b="2"), segmenter=Waiting())
    assert [outcome.error for outcome in outcomes] == [None, None]


def test_progress_names_the_case(tmp_path):
    told = []
    _run(tmp_path, _jobs(tmp_path, a="1"), on_progress=lambda case, *parts: told.append((case.name, *parts)))
    assert told == [("a", 1, 1)]


def test_no_cases_are_no_outcomes(tmp_path):
    assert _run(tmp_path, []) == []


class Hungry(Doubler):
    """Takes as many megabytes as the number says."""

    def segment(self, prepared, progress):
        return np.ones((prepared, 1_000_000), np.uint8).sum() // 1_000_000 * self.factor


def test_the_peak_is_that_of_the_case(tmp_path):
    _run(tmp_path, _jobs(tmp_path, a="1", b="700", c="1"), segmenter=Hungry())
    peak = {name: case["peak_memory_bytes"] for name, case in _manifest(tmp_path).cases.items()}
    assert peak["b"] > peak["a"] + 6e8
    assert peak["b"] > peak["c"] + 6e8


class Doomed(Doubler):
    """Is killed at 666, as by a system that is out of memory."""

    def segment(self, prepared, progress):
        if prepared == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().segment(prepared, progress)


def test_a_killed_process_is_told_and_the_call_can_be_repeated(tmp_path):
    jobs = _jobs(tmp_path, a="666", b="2", c="3")
    outcomes = _run(tmp_path, jobs, segmenter=Doomed(), processes=2)
    assert "was killed" in outcomes[0].error and "fewer --jobs" in outcomes[0].error
    assert [outcome.error for outcome in outcomes[1:]] == [None, None]
    (tmp_path / "a.txt").write_text("1")
    again = _run(tmp_path, jobs, segmenter=Doomed(), processes=2)
    assert [outcome.error for outcome in again] == [None, None, None]
    assert [(tmp_path / "out" / f"{name}.txt").read_text() for name in "abc"] == ["2", "4", "6"]


def test_an_image_that_vanishes_is_a_failed_case(tmp_path):
    jobs = _jobs(tmp_path, a="1", b="2")
    (tmp_path / "a.txt").unlink()
    outcomes = _run(tmp_path, jobs)
    assert outcomes[0].error.startswith("FileNotFoundError") and outcomes[1].error is None
    assert _manifest(tmp_path).cases["a"]["images"][0]["sha256"] is None


@pytest.mark.slow
def test_ray_takes_the_cases_of_a_cohort(tmp_path):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # it has its own cloudpickle
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        jobs = _jobs(tmp_path, a="1", bad="x", z="21")
        outcomes = _run(tmp_path, jobs, processes=2, backend="ray")
    finally:
        ray.shutdown()
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert (tmp_path / "out" / "z.txt").read_text() == "42"
    assert np.isclose(_manifest(tmp_path).cases["z"]["seconds"]["read"], 0, atol=60)
