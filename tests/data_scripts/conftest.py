"""Data scripts as a person runs them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a data script as a person does; proxies of the surroundings are left out."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPTS / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(SCRIPTS.parent),
                "COLUMNS": "200",
                "NO_PROXY": "127.0.0.1",
            },
        )

    return run
