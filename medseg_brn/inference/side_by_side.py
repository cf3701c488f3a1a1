"""Many pieces of work at once: on processes of this machine, or on those of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from medseg_brn.errors import ConfigError

Backend = Literal["processes", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")

# Pieces per process that a cluster is given at a time.
BATCH = 4


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

    Args:
        work: done in another process, so it and the items are sent there.
        items: one piece of work each.
        processes: how many at once.
        backend: processes of this machine, or those of a Ray cluster.
        on_killed: the result of a piece that is lost because its process was killed.
        threads: per process of this machine; None shares its cores out.
        gpus: that each piece takes on a Ray cluster.

    Raises:
        ConfigError: Ray is asked for and not installed.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if backend == "ray":
        _register_ray()
        settings: dict[str, Any] = {"backend": "ray"}
        if gpus:
            settings["ray_remote_args"] = {"num_gpus": gpus}
        # Ray's backend hands results over at the end only, so it is given a few pieces at a time.
        together, return_as = BATCH * processes, "list"
    else:
        settings = {"backend": "loky", "inner_max_num_threads": threads}
        together, return_as = max(1, len(items)), "generator_unordered"
    for first in range(0, len(items), together):
        waiting = dict(enumerate(items[first : first + together]))
        try:
            with parallel_config(n_jobs=processes, **settings):
                calls = (delayed(_do_numbered)(work, number, item) for number, item in waiting.items())
                parallel = Parallel(return_as=return_as, batch_size=1, pre_dispatch="n_jobs")
                for number, result in parallel(list(calls)):
                    del waiting[number]
                    yield result
        except TerminatedWorkerError:
            yield from (on_killed(item) for item in waiting.values())


def _do_numbered(work: Callable[[Item], Result], number: int, item: Item) -> tuple[int, Result]:
    return number, work(item)


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError:
        raise ConfigError(
            "Work can be spread over a Ray cluster only where Ray is installed; install it with "
            'pip install "medseg-brn[ray]", or leave out --backend ray'
        ) from None
    register_ray()
