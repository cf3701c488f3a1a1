"""The design's direction: a room knows what stands before it, and nothing behind it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medseg_brn"
ORDER = (
    "errors",
    "config",
    "experiment",
    "volumes",
    "cases",
    "patches",
    "networks",
    "probes",
    "inference",
    "models",
    "evaluation",
    "reports",
    "training",
    "planning",
    "cross_validation",
    "comparison",
    "studies",
    "demo",
    "cli",
)
WITHOUT_TORCH = ("errors", "config", "experiment", "volumes", "cases", "reports")


def _rooms_and_files() -> list[tuple[str, Path]]:
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in sorted(files)]


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _wrong_arrows(room: str, source: str) -> list[str]:
    imported = [name.split(".")[1] for name in _imports(source) if name.startswith("medseg_brn.")]
    return [name for name in imported if name in ORDER and ORDER.index(name) > ORDER.index(room)]


def test_every_file_stands_in_a_room_of_the_design():
    assert {room for room, _ in _rooms_and_files()} <= set(ORDER)


@pytest.mark.parametrize(
    ("room", "path"), _rooms_and_files(), ids=lambda value: getattr(value, "name", value)
)
def test_imports_point_up(room, path):
    assert _wrong_arrows(room, path.read_text(encoding="utf-8")) == []


def test_an_arrow_that_points_down_is_found():
    assert _wrong_arrows("volumes", "from medseg_brn.cases.dataset import Case") == ["cases", "cases"]
    assert _wrong_arrows("cases", "def f():\n    import medseg_brn.training.loop") == ["training"]


@pytest.mark.parametrize(
    ("room", "path"),
    [entry for entry in _rooms_and_files() if entry[0] in WITHOUT_TORCH],
    ids=lambda value: getattr(value, "name", value),
)
def test_rooms_of_files_and_patients_know_no_torch(room, path):
    assert not [
        name
        for name in _imports(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in ("torch", "monai")
    ]


def test_the_command_line_starts_without_heavy_packages():
    code = (
        "import sys, medseg_brn, medseg_brn.cli.main\n"
        "heavy = ('torch', 'monai', 'nibabel', 'SimpleITK', 'numpy', 'pydantic', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_nothing_loaded_can_execute():
    unsafe_load = r"torch\.load\((?!.*weights_only=True)"
    forbidden = re.compile(
        rf"\bimport pickle\b|\bpickle\.|\beval\(|\bexec\(|yaml\.load\(|{unsafe_load}|weights_only=False"
    )
    hits = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for _, path in _rooms_and_files()
        for line in path.read_text(encoding="utf-8").splitlines()
        if forbidden.search(line) and not line.strip().startswith("#") and ".eval(" not in line
    ]
    assert hits == []
