"""Pieces of work on real processes: all are done, killed ones are told, exceptions come back as they are."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg_brn.errors import ConfigError, DataError
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.side_by_side import THREAD_VARIABLES, _fit_into_nodes, do_side_by_side

try:
    import cloudpickle
except ImportError:  # before joblib 1.6 it came inside
    from joblib.externals import cloudpickle

# Other processes cannot import a test's file, wherever the tests are run from: its functions are sent whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _no_kill(item):
    raise AssertionError(f"{item} was not killed")


def _do(work: Callable, items, processes: int = 2, on_killed: Callable = _no_kill, **options) -> list:
    return list(do_side_by_side(work, items, processes=processes, on_killed=on_killed, **options))


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


@pytest.mark.parametrize("processes", [1, 3])
def test_every_piece_is_done_once_and_elsewhere(processes):
    results = _do(lambda n: (n * n, os.getpid()), range(20), processes)
    assert sorted(square for square, _ in results) == [n * n for n in range(20)]
    places = {place for _, place in results}
    assert os.getpid() not in places and len(places) <= processes


def test_no_pieces_are_no_results():
    assert _do(abs, []) == []


def test_a_result_comes_before_the_pieces_that_take_longer(tmp_path):
    def work(name):
        if name == "long":
            _wait_for(tmp_path / "told")
        return name

    results = do_side_by_side(work, ["long", "short"], processes=2, on_killed=_no_kill)
    assert next(results) == "short"
    (tmp_path / "told").touch()
    assert list(results) == ["long"]


def test_never_more_pieces_are_under_way_than_processes(tmp_path):
    def work(n):
        (tmp_path / str(n)).touch()
        count = len(list(tmp_path.iterdir()))
        time.sleep(0.02)
        (tmp_path / str(n)).unlink()
        return count

    assert max(_do(work, range(12), processes=3)) <= 3


def test_only_the_piece_that_kills_its_process_is_told_as_killed():
    def work(n):
        if n == 1:
            _kill_itself()
        return n, "done"

    results = _do(work, range(12), on_killed=lambda n: (n, "killed"))
    assert sorted(results) == [(n, "killed" if n == 1 else "done") for n in range(12)]


def test_a_piece_that_was_under_way_beside_a_killed_one_is_done_again_alone(tmp_path):
    def work(name):
        (tmp_path / f"{name} {os.getpid()}").touch()
        if name == "bad":
            _wait_for(tmp_path / "begun")
            _kill_itself()
        (tmp_path / "begun").touch()
        if len(list(tmp_path.glob("good*"))) == 1:
            time.sleep(600)  # until it is ended beside the bad one
        return name

    assert sorted(_do(work, ["bad", "good"], on_killed=lambda name: f"{name}, killed")) == [
        "bad, killed",
        "good",
    ]
    assert len(list(tmp_path.glob("good*"))) == 2
    assert len(list(tmp_path.glob("bad*"))) == 2


def test_a_piece_that_is_killed_once_is_done_the_second_time(tmp_path):
    def work(n):
        if n == 3 and not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            _kill_itself()
        return n

    assert sorted(_do(work, range(6))) == list(range(6))


KILLED_WITH_WORK_UNDER_WAY = """
import os, sys, time
from pathlib import Path
from medseg_brn.inference.side_by_side import do_side_by_side

def work(folder):
    (Path(folder) / "began").touch()
    while True:  # as long as this process lives
        (Path(folder) / "alive").write_text(str(time.time()))
        time.sleep(0.05)

list(do_side_by_side(work, [sys.argv[1]], processes=1, on_killed=print))
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a process cannot see that its parent is gone")
def test_work_under_way_ends_with_the_process_that_asked_for_it(tmp_path):
    asking = subprocess.Popen([sys.executable, "-c", KILLED_WITH_WORK_UNDER_WAY, str(tmp_path)])
    _wait_for(tmp_path / "began")
    asking.kill()
    asking.wait()
    for _ in range(600):
        (tmp_path / "alive").unlink(missing_ok=True)
        time.sleep(0.5)
        if not (tmp_path / "alive").exists():
            return
    raise AssertionError("the piece of work goes on without anyone to take its result")


def test_pieces_that_all_kill_are_all_told():
    def work(n):
        _kill_itself()

    assert sorted(_do(work, range(3), on_killed=lambda n: -n)) == [-2, -1, 0]


def test_an_exception_of_the_work_is_raised_as_it_is():
    def work(n):
        raise DataError(f"case {n} is damaged")

    with pytest.raises(DataError, match=r"^case 7 is damaged$"):
        _do(work, [7])


def test_what_cannot_be_sent_is_no_killed_process():
    with pytest.raises(Exception, match="pickle"):
        _do(lambda lock: None, [threading.Lock()])


@pytest.mark.parametrize("ending", ["close", "exception"])
def test_after_an_early_end_nothing_begins_and_what_was_under_way_is_stopped(tmp_path, ending):
    def work(n):
        (tmp_path / f"{n} {os.getpid()}").touch()
        if n > 0:
            time.sleep(600)
        if ending == "exception":
            raise ZeroDivisionError
        return n

    results = do_side_by_side(work, range(50), processes=2, on_killed=_no_kill)
    if ending == "exception":
        with pytest.raises(ZeroDivisionError):
            next(results)
    else:
        assert next(results) == 0
        results.close()
    begun = [path.name.split() for path in tmp_path.iterdir()]
    assert {int(n) for n, _ in begun} <= {0, 1, 2}
    for _, process in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_what_is_asked_for_during_a_cohort_has_processes_of_its_own():
    outer = do_side_by_side(abs, range(4), processes=2, on_killed=_no_kill)
    first = next(outer)
    assert sorted(_do(abs, range(-3, 0), threads=1)) == [1, 2, 3]
    assert sorted([first, *outer]) == [0, 1, 2, 3]


def _read_threads(_) -> set[str | None]:
    return {os.environ.get(name) for name in THREAD_VARIABLES}


def test_processes_have_the_threads_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _do(_read_threads, [0, 1], threads=3) == [{"3"}, {"3"}]


@pytest.mark.parametrize("processes", [1, 2])
def test_threads_not_asked_for_are_a_share_of_the_cores(monkeypatch, processes):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert _do(_read_threads, [0], processes) == [{str(max(1, core_count() // processes))}]


def test_a_variable_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert _do(lambda _: os.environ["OMP_NUM_THREADS"], [0]) == ["7"]


def _arrive(folder: Path, count: int) -> "OnGpus":
    """Rebuild the work in a process that sees so many GPUs, none of which is there."""
    import torch

    torch.cuda.device_count = lambda: count
    torch.cuda.set_device = lambda number: setattr(torch.cuda, "taken", number)
    torch.cuda.taken = None
    return OnGpus(folder, count)


class OnGpus:
    """Tells which GPU was taken, once as many pieces are under way as there are processes."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __reduce__(self):
        return _arrive, (self.folder, self.count)

    def __call__(self, n):
        import torch

        (self.folder / str(n)).touch()
        for beside in range(n // 3 * 3, n // 3 * 3 + 3):
            _wait_for(self.folder / str(beside))
        return n // 3, torch.cuda.taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "count", "taken"),
    [(0, 3, [None, None, None]), (1, 3, [0, 1, 2]), (1, 2, [0, 0, 1])],
    ids=["no GPUs asked for", "one GPU each", "three pieces on two GPUs"],
)
def test_pieces_under_way_have_different_gpus(tmp_path, gpus, count, taken):
    # Pieces 0, 1, 2 wait for each other, as do 3, 4, 5: each three are under way together.
    results = _do(OnGpus(tmp_path, count), range(6), processes=3, gpus=gpus)
    for group in (0, 1):
        assert sorted((gpu for n, gpu in results if n == group), key=str) == taken


def _node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": 1e9}}


@pytest.mark.parametrize(
    ("cpus", "processes", "threads"),
    [
        ([8], 1, 8),
        ([8], 3, 2),  # 3 pieces of 3 would take 9
        ([8], 20, 1),
        ([8, 8], 3, 4),  # of 5, each node holds one only
        ([16, 4], 2, 8),
    ],
)
def test_pieces_share_the_cores_of_a_cluster(cpus, processes, threads):
    nodes = [*map(_node, cpus), _node(64, alive=False)]
    assert _fit_into_nodes(nodes, processes, None, 0) == threads


@pytest.mark.parametrize(("threads", "gpus"), [(9, 0), (8, 1), (1, 2)])
def test_a_piece_too_large_for_every_node_is_refused(threads, gpus):
    nodes = [_node(8), _node(4, gpus=1)]
    with pytest.raises(ConfigError, match=rf"{threads} cores and {gpus} GPUs.*8 cores and 0 GPUs, 4 cores"):
        _fit_into_nodes(nodes, 1, threads, gpus)


@pytest.fixture(scope="module")
def ray():
    """Ray, which the first piece of work starts on this machine."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # it has its own cloudpickle
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ray_does_every_piece_elsewhere(ray, processes):
    results = _do(lambda n: (n * n, os.getpid()), range(10), processes, backend="ray", threads=1)
    assert sorted(square for square, _ in results) == [n * n for n in range(10)]
    assert os.getpid() not in {place for _, place in results}


@pytest.mark.slow
def test_ray_tells_only_the_piece_that_kills_its_process_as_killed(ray):
    def work(n):
        if n == 1:
            _kill_itself()
        return n, "done"

    results = _do(work, range(6), backend="ray", on_killed=lambda n: (n, "killed"))
    assert sorted(results) == [(n, "killed" if n == 1 else "done") for n in range(6)]


@pytest.mark.slow
def test_ray_raises_an_exception_of_the_work_as_it_is(ray):
    def work(n):
        raise DataError(f"case {n} is damaged")

    with pytest.raises(DataError, match=r"^case 7 is damaged$") as raised:
        _do(work, [7], backend="ray")
    assert type(raised.value) is DataError


@pytest.mark.slow
def test_ray_hands_over_a_result_at_once_and_stops_what_was_under_way(ray, tmp_path):
    def work(n):
        (tmp_path / f"{n} {os.getpid()}").touch()
        if n > 0:
            time.sleep(600)
        return n

    results = do_side_by_side(work, range(50), processes=2, backend="ray", on_killed=_no_kill, threads=1)
    assert next(results) == 0
    results.close()
    begun = dict(path.name.split() for path in tmp_path.iterdir())
    assert set(begun) <= {"0", "1"}
    for n, process in begun.items():
        if n != "0":
            _wait_until_gone(int(process))


def _wait_until_gone(process: int) -> None:
    for _ in range(3000):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {process} is still there")


@pytest.mark.slow
def test_ray_refuses_a_piece_that_no_node_can_hold(ray):
    with pytest.raises(ConfigError, match="takes 1 cores and 64 GPUs"):
        _do(abs, [1], backend="ray", threads=1, gpus=64)


def test_ray_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[ray\].*leave out --backend ray"):
        _do(abs, [1], backend="ray")
