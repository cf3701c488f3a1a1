"""What the machine has: memory to spare, memory in use, processors."""

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

from medseg_brn.errors import ConfigError

UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip

# Of the memory that is free, so much is used unless told otherwise: the file cache, other programs and what
# the plan does not foresee have the rest.
DEFAULT_SHARE = 0.5


def parse_memory(text: str) -> int:
    """Return the bytes in a text such as "4GB" (10^9), "512 MB" or "1.5GiB" (2^30).

    Raises:
        ConfigError: it is no positive amount in a known unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    unit = UNITS.get(found[2].upper()) if found else None
    amount = int(float(found[1]) * unit) if found and unit is not None else 0
    if amount < 1:
        raise ConfigError(
            f"Memory {text!r} is no amount of memory: a number and one of the units B, KB, MB, GB, KiB, MiB, "
            "GiB, as in 4GB or 512MiB"
        )
    return amount


def default_budget_bytes(processes: int = 1) -> int:
    """Return what this process may take in all: what it has now, and its part of half of what is free."""
    return resident_bytes() + int(DEFAULT_SHARE * available_memory_bytes() / processes)


def total_memory_bytes() -> int:
    """Return the memory of the machine, or a container's limit where that is less."""
    if sys.platform == "win32":
        return _memory_on_windows()[0]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits_of_container()])


def available_memory_bytes() -> int:
    """Return what programs may still take without swapping, a container's limit counted."""
    if sys.platform.startswith("linux"):
        free = read_meminfo(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable")
        return max(0, min([free, *_left_of_container()]))
    if sys.platform == "win32":
        return _memory_on_windows()[1]
    # macOS does not tell what its caches would give up: half of all is a cautious guess.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def resident_bytes() -> int:
    """Return what this process has in memory now; where the system does not tell, its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return read_meminfo(status.read_text(encoding="utf-8"), "VmRSS")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the most this process has had in memory at once, since its start or `reset_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return read_meminfo(status.read_text(encoding="utf-8"), "VmHWM")
    if sys.platform == "win32":
        return 0  # told only to programs that ask through its own libraries
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def reset_peak() -> None:
    """Let `peak_resident_bytes` begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where its library keeps it for later (glibc)."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # other libraries have no such function
            ctypes.CDLL(None).malloc_trim(0)


def read_meminfo(text: str, name: str) -> int:
    """Return the bytes that a line such as "MemAvailable:  123 kB" of /proc tells."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def read_cgroup_limit(limit: str, used: str, stat: str) -> int | None:
    """Return what a container's control group leaves, from its files; None where it sets no limit.

    Args:
        limit: `memory.max` (or version 1's `memory.limit_in_bytes`).
        used: `memory.current` (`memory.usage_in_bytes`).
        stat: `memory.stat`; its file cache (`inactive_file`) is given up when memory is asked for.
    """
    if not limit.strip().isdigit() or int(limit) >= 2**60:
        return None
    cache = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
    return int(limit) - int(used) + (int(cache[1]) if cache else 0)


def processor_name() -> str:
    """Return what the processor calls itself, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {core_count()} cores"


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _left_of_container() -> list[int]:
    for folder, names in (
        ("/sys/fs/cgroup", ("memory.max", "memory.current", "memory.stat")),
        ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")),
    ):
        try:
            left = read_cgroup_limit(*(Path(folder, name).read_text(encoding="ascii") for name in names))
        except (OSError, ValueError):
            continue
        return [] if left is None else [left]
    return []


def _limits_of_container() -> list[int]:
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return limits


def _memory_on_windows() -> tuple[int, int]:
    """In all, and available."""

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "c", "d", "e", "f", "g")),
        ]  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.total), int(status.available)
