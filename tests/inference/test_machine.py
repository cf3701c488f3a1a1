"""Memory: amounts as people write them, and what the system's own files say."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.errors import ConfigError
from medseg_brn.inference import machine


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("2000", 2000), (".5kib", 512)],
)
def test_amounts_of_memory(text, expected):
    assert machine.parse_memory(text) == expected


@given(st.integers(1, 10**6), st.sampled_from(["B", "KB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_an_amount_and_its_unit(amount, unit):
    assert machine.parse_memory(f"{amount} {unit}") == amount * machine.UNITS[unit.upper()]


@pytest.mark.parametrize("text", ["", "GB", "4 parsecs", "-1GB", "1e9", "0", "4GB 2MB"])
def test_what_is_no_amount_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"no amount of memory.*as in 4GB") as told:
        machine.parse_memory(text)
    assert repr(text) in str(told.value)


def test_proc_tells_kilobytes():
    text = "MemTotal:       24684084 kB\nMemFree:        23320632 kB\nMemAvailable:   24327460 kB\n"
    assert machine.read_meminfo(text, "MemAvailable") == 24327460 * 1024
    assert machine.read_meminfo(text, "Nothing") == 0


@pytest.mark.parametrize(
    ("limit", "stat", "expected"),
    [
        ("max\n", "", None),
        ("9223372036854771712\n", "", None),
        ("1000\n", "anon 5\n", 700),
        ("1000\n", "file 90\ninactive_file 50\n", 750),
        ("1000\n", "total_inactive_file 20\n", 720),
    ],
)
def test_a_container_s_limit_counts_its_file_cache_as_free(limit, stat, expected):
    assert machine.read_cgroup_limit(limit, "300\n", stat) == expected


def test_memory_that_is_taken_shows():
    """In a process of its own, whose allocator holds no freed memory that could be used again."""
    code = (
        "import numpy as np\n"
        "from medseg_brn.inference import machine\n"
        "before = machine.resident_bytes()\n"
        "machine.reset_peak()\n"
        "block = np.ones(50_000_000, np.uint8)\n"
        "taken = machine.resident_bytes() - before\n"
        "del block\n"
        "print(taken, machine.peak_resident_bytes() - before, machine.resident_bytes() - before)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    taken, peak, after = map(int, told.split())
    assert abs(taken - 50e6) < 5e6
    assert abs(peak - 50e6) < 5e6
    assert after < 5e6


def test_all_memory_is_more_than_what_is_free_and_no_more_than_the_system_tells():
    total = machine.total_memory_bytes()
    assert total > machine.available_memory_bytes()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        assert total <= machine.read_meminfo(meminfo.read_text(), "MemTotal")


def test_the_default_leaves_half_of_what_is_free():
    free = machine.available_memory_bytes()
    assert 0 < machine.default_budget_bytes() < machine.resident_bytes() + free
    assert "cores" in machine.processor_name()
