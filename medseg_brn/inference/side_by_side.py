"""Many pieces of work at once: on processes of this machine, or on those of a Ray cluster.

Never more pieces are under way than there are processes, and a result is handed over when it is there. A
process that is killed (by a system that is out of memory, say) takes no other piece's result with it.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Literal, TypeVar

from medseg_brn.errors import ConfigError
from medseg_brn.inference.machine import core_count

Backend = Literal["processes", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")

# What the libraries of numbers read when a process loads them.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def do_side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    processes: int,
    backend: Backend = "processes",
    on_killed: Callable[[Item], Result],
    threads: int | None = None,
    gpus: int = 0,
) -> Iterator[Result]:
    """Yield the results as they come, in whatever order.

    An exception of `work` is raised here as it is. Then, or when the iterator is closed, pieces that have not
    begun never do, and those under way are stopped.

    Args:
        work: done in another process, so it and the items are sent there.
        items: one piece of work each.
        processes: how many at once, at least 1.
        backend: processes of this machine, or those of a Ray cluster: the one that RAY_ADDRESS names or that
            is connected already, or else one that is started on this machine.
        on_killed: the result of a piece whose process is killed. On this machine, where one killed process
            ends all, the pieces that were under way are first tried again, each alone.
        threads: of each process. None shares out the cores of this machine, unless a variable such as
            OMP_NUM_THREADS is set, or those of the cluster.
        gpus: that each piece takes on a Ray cluster. On this machine, any number but 0 spreads the pieces
            that are under way over its GPUs.

    Raises:
        ConfigError: Ray is asked for and not installed, its cluster does not answer, or no node of it has as
            many cores or GPUs as a piece takes.
    """
    if backend == "ray":
        yield from _do_on_ray(work, items, processes, on_killed, threads, gpus)
        return
    environment = _limit_threads(processes, threads)
    waiting = deque(items)
    while waiting:
        suspects = yield from _do_until_killed(work, waiting, processes, environment, gpus)
        for item in suspects:
            if (yield from _do_until_killed(work, deque([item]), 1, environment, gpus)):
                yield on_killed(item)


def _limit_threads(processes: int, threads: int | None) -> dict[str, str]:
    share = max(1, core_count() // processes)
    if threads is None:
        return {name: os.environ.get(name, str(share)) for name in THREAD_VARIABLES}
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def _do_until_killed(
    work: Callable[[Item], Result],
    waiting: deque[Item],
    processes: int,
    environment: dict[str, str],
    gpus: int,
) -> Generator[Result, None, list[Item]]:
    """Do what is waiting; where a process is killed, stop and return the pieces that were under way."""
    # Not joblib's shared executor: its workers would outlive this call with all they hold in memory, and
    # joblib.Parallel would take it for its own and fail.
    from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

    executor = ProcessPoolExecutor(processes, env=environment, initializer=_end_with, initargs=(os.getpid(),))
    under_way: dict[Future[Result], tuple[Item, int]] = {}
    ended: list[Future[Result]] = []
    slots = deque(range(processes))
    try:
        while True:
            # Before the results are yielded, so that no process waits for the caller.
            while waiting and slots:
                try:
                    future = executor.submit(_do, work, waiting[0], slots[0] if gpus else None)
                except BrokenProcessPool:  # since the last wait: this piece has not begun
                    break
                under_way[future] = (waiting.popleft(), slots.popleft())
            for future in ended:
                yield future.result()
            if not under_way:
                break
            ended = list(wait(under_way, return_when=FIRST_COMPLETED).done)
            if any(_is_lost(future) for future in ended):
                return (yield from _clear(executor, under_way))
            slots.extend(under_way.pop(future)[1] for future in ended)
        executor.shutdown()
        return []
    finally:
        _stop(executor, under_way)


def _end_with(parent: int) -> None:
    """From now on this process ends within a second after its parent.

    Where the parent is killed, a piece under way would go on for hours, and write into its folder beside the
    one of the same command called again.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(work: Callable[[Item], Result], item: Item, slot: int | None) -> Result:
    """Do one piece; a slot is a number that no other piece under way has."""
    if slot is not None:
        import torch

        torch.cuda.set_device(slot % torch.cuda.device_count())
    return work(item)


def _clear(
    executor: Any, under_way: dict[Future[Result], tuple[Item, int]]
) -> Generator[Result, None, list[Item]]:
    """End every process, yield what was done all the same, return the pieces that are lost."""
    _stop(executor, under_way)
    lost = [item for future, (item, _) in under_way.items() if _is_lost(future)]
    for future in under_way:
        if not _is_lost(future):
            yield future.result()
    return lost


def _stop(executor: Any, under_way: Iterable[Future[Any]]) -> None:
    """End every process and wait for that: a piece must not be tried again while its process still writes."""
    # loky's own thread fails where it is stopped before it has sent what was submitted a moment ago.
    for _ in range(1000):
        if all(future.running() or future.done() for future in under_way):
            break
        time.sleep(0.001)
    executor.shutdown(kill_workers=True)


def _is_lost(future: Future[Any]) -> bool:
    # A pool breaks also where something cannot be sent; trying that again would not help, so it is raised.
    from joblib.externals.loky.process_executor import ShutdownExecutorError, TerminatedWorkerError

    return isinstance(future.exception(), TerminatedWorkerError | ShutdownExecutorError)


def _do_on_ray(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    on_killed: Callable[[Item], Result],
    threads: int | None,
    gpus: int,
) -> Iterator[Result]:
    """Yield the results of a cluster; there, a killed process takes only its own piece with it."""
    ray = _connect_to_ray()
    threads = _fit_into_nodes(ray.nodes(), processes, threads, gpus)
    # Ray would try again by itself, what a node has no memory for without end.
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_do)
    sent_work = ray.put(work)
    waiting = deque(items)
    under_way: dict[Any, Item] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < processes:
                item = waiting.popleft()
                # No slot: a process of the cluster sees its own GPUs only.
                under_way[task.remote(sent_work, item, None)] = item
            for ended in ray.wait(list(under_way))[0]:
                item = under_way.pop(ended)
                yield _take_from_ray(ray, ended, item, on_killed)
    finally:
        for begun in under_way:
            ray.cancel(begun, force=True)


def _take_from_ray(ray: Any, ended: Any, item: Item, on_killed: Callable[[Item], Result]) -> Result:
    errors = ray.exceptions
    lost = (
        errors.WorkerCrashedError,
        errors.OutOfMemoryError,
        errors.NodeDiedError,
        errors.LocalRayletDiedError,
        errors.ObjectLostError,
    )
    try:
        return ray.get(ended)
    except errors.RayTaskError as error:  # the exception of `work`, which Ray has wrapped
        raise error.cause from error
    except lost:
        return on_killed(item)


def _connect_to_ray() -> Any:
    """Return the module `ray`, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "Work can be spread over a Ray cluster only where Ray is installed; install it with "
            'pip install "medseg-brn[ray]", or leave out --backend ray'
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(
                f"No Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')!r}: {error}. Start "
                "one with ray start --head, correct the address, or unset it to use this machine"
            ) from None
    return ray


def _fit_into_nodes(nodes: Sequence[dict[str, Any]], processes: int, threads: int | None, gpus: int) -> int:
    """Return the cores that each piece takes.

    Args:
        nodes: of the cluster, as `ray.nodes` describes them.
        processes: pieces at once.
        threads: None is the most with which so many pieces find room, at least 1.
        gpus: that each piece takes.

    Raises:
        ConfigError: no node has as many cores and GPUs as a piece takes; Ray would wait for one, and say
            nothing.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]
    if threads is None:
        cores = [cpus for cpus, _ in sizes]
        room = (
            n for n in range(max(cores, default=1), 1, -1) if sum(cpus // n for cpus in cores) >= processes
        )
        threads = next(room, 1)
    if not any(cpus >= threads and has >= gpus for cpus, has in sizes):
        listing = ", ".join(f"{cpus} cores and {has} GPUs" for cpus, has in sizes)
        raise ConfigError(
            f"A piece of work takes {threads} cores and {gpus} GPUs, and no node of the Ray cluster has as "
            f"many ({listing}); add such a node, or ask for less"
        )
    return threads
