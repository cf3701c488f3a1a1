"""Whole processes timed in turn, with the memory of each and of all that it starts; results as JSON."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SAMPLE_SECONDS = 0.05
PROJECT = Path(__file__).parents[3]


class BenchmarkError(Exception):
    """A measured command failed; its output is in the message."""


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        seconds: wall time, start of the interpreter included.
        processor_seconds: of the process and all that it waited for.
        largest_bytes: the most that any one process had in memory, by the system's own mark.
        sum_bytes: the most that all processes had at once, sampled every 50 ms; pages that processes share
            (libraries, forked memory) count once for each.
        output: what it printed.
    """

    seconds: float
    processor_seconds: float
    largest_bytes: int
    sum_bytes: int
    output: str


def run(command: Sequence[object], threads: int, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, with `threads` threads.

    Raises:
        BenchmarkError: it failed.
    """
    given = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peaks = {"largest": 0, "sum": 0}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, done))
    watcher.start()
    output, _ = process.communicate()
    seconds, after = time.perf_counter() - start, os.times()
    done.set()
    watcher.join()
    if process.returncode != 0:
        raise BenchmarkError(f"{' '.join(map(str, command))}\nexit code {process.returncode}\n{output}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, processor, peaks["largest"], peaks["sum"], output)


def in_turn(commands: Mapping[str, Any], repeats: int) -> dict[str, list[Run]]:
    """Call functions that give a `Run` in turn, A B A B …, so that what else happens falls on all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            runs[name].append(command())
            last = runs[name][-1]
            print(f"  {number + 1}/{repeats} {name}: {last.seconds:.1f} s", file=sys.stderr, flush=True)
    return runs


def ratios(slower: Iterable[float], faster: Iterable[float]) -> list[float]:
    """Return the ratio pair by pair."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def spread(values: Iterable[float], form: str = ".1f") -> str:
    """Say minimum, median and maximum."""
    known = sorted(values)
    return " / ".join(format(value, form) for value in (known[0], statistics.median(known), known[-1]))


def describe_machine(peers: Path | None, threads: int) -> dict[str, object]:
    """Return processor, memory, system and versions, the peers' too."""
    cpuinfo, meminfo = (Path("/proc", name).read_text() for name in ("cpuinfo", "meminfo"))
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    features = set(re.findall(r"\b(avx512_bf16|amx_bf16|avx512f|avx2)\b", cpuinfo))
    total = re.search(r"^MemTotal:\s+(\d+)", meminfo)
    return {
        "processor": model[1] if model else platform.machine(),
        "instructions": sorted(features),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(int(total[1]) * 1024 / 1e9, 1) if total else None,
        "system": platform.platform(),
        "ours": _versions(Path(sys.executable)),
        "peers": _versions(peers) if peers else None,
    }


def report(name: str, output: Path, table: Table, raw: Mapping[str, object], notes: Sequence[str]) -> None:
    """Print a section's table and notes, and write all its figures to `NAME.json`."""
    console = Console(width=150)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    path = output / f"{name}.json"
    written = {"section": name, "notes": list(notes), **raw}
    path.write_text(json.dumps(written, indent=2, default=_plain) + "\n", encoding="utf-8")
    console.print(f"{path}\n", markup=False, highlight=False)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, Run) else str(value)


def _versions(python: Path) -> dict[str, str]:
    """Return versions of what matters in an environment."""
    code = (
        "import json, platform; from importlib import metadata as m; found = {'python': "
        "platform.python_version()}\n"
        "for n in ('torch', 'nnunetv2', 'monai', 'medseg-brn', 'numpy', 'dynamic_network_architectures'):\n"
        "    try: found[n] = m.version(n)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return {str(name): str(version) for name, version in json.loads(found).items()}


def _watch(root: int, peaks: dict[str, int], done: threading.Event) -> None:
    """Keep the peaks of a process tree until told to stop.

    Only `status` is read, whose counters the system keeps. `smaps_rollup`, which could count shared pages
    once, walks all page tables holding a lock that the watched
    process waits for, which would slow what is measured.
    """
    while not done.wait(SAMPLE_SECONDS):
        resident = 0
        for pid in _tree(root):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it has just ended
                continue
            peaks["largest"] = max(peaks["largest"], _kilobytes(status, "VmHWM") * 1024)
            resident += _kilobytes(status, "VmRSS") * 1024
        peaks["sum"] = max(peaks["sum"], resident)


def _tree(root: int) -> list[int]:
    """Return the process and all its descendants."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting.extend(map(int, children.read_text().split()))
            except OSError:
                continue
    return found


def _kilobytes(text: str, name: str) -> int:
    line = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(line[1]) if line else 0
