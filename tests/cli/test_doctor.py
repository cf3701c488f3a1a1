"""`medseg-brn doctor` as a person and as a script run it."""

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medseg_brn.cli.main import app
from medseg_brn.inference.examination import EXTRAS, FORMATS, PACKAGES
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.precision import choose_device, choose_precision, has_native_bf16

CPU = torch.device("cpu")


def run(folder: Path, *arguments: str) -> str:
    """What a process prints whose folder for temporary files is `folder`."""
    environment = os.environ | {"COLUMNS": "80", "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "medseg_brn", "doctor", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def facts() -> dict:
    """As `--json` prints them, in this process: its trial of the formats is the one that `auto` goes by."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_auto_is_what_inference_would_choose(facts):
    device = choose_device("auto")
    assert facts["auto"]["device"] == device.type
    chosen = {choice["device"]: choice["precision"] for choice in facts["auto"]["choices"]}
    assert chosen == {name: FORMATS[choose_precision("auto", torch.device(name))] for name in chosen}
    assert set(chosen) == {"cpu", device.type}


def test_what_is_native_is_tried_in_both_layouts(facts):
    tried = [(row["precision"], row["layout"]) for row in facts["trials"] if row["device"] == "cpu"]
    formats = ["fp32", "bf16"] if has_native_bf16(CPU) else ["fp32"]
    assert tried == [(name, layout) for name in formats for layout in ("contiguous", "channels_last")]
    for row in facts["trials"]:
        first = next(other for other in facts["trials"] if other["device"] == row["device"])
        ratio = first["milliseconds"] / row["milliseconds"]
        assert row["relative_speed"] == pytest.approx(ratio, rel=1e-2)


def test_versions_and_processor_are_this_process_s(facts):
    assert facts["versions"] == {name: version(name) for name in PACKAGES} | {
        "python": platform.python_version()
    }
    assert facts["processor"]["cores"] == core_count()
    assert facts["processor"]["threads"] == torch.get_num_threads()
    assert "cores" not in facts["processor"]["name"]
    assert ("avx512_bf16" in facts["processor"]["instructions"]) <= has_native_bf16(CPU)


def test_infer_takes_more_than_nothing_and_less_than_all(facts):
    memory = facts["memory"]
    assert 0 < memory["infer_bytes"] < memory["total_bytes"]
    assert 0 < memory["free_bytes"] < memory["total_bytes"]


def test_json_is_all_that_a_script_reads(tmp_path):
    told = json.loads(run(tmp_path, "--json"))
    assert told["temporary_folder"]["path"] == str(tmp_path)
    assert told["temporary_folder"]["free_bytes"] > 0


def test_a_person_reads_80_columns(tmp_path):
    text = run(tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    flowing = " ".join(text.split())
    for part in (
        f"torch {version('torch')}",
        f"{core_count()} cores",
        "--memory",
        "TMPDIR",
        "fp32 contiguous",
    ):
        assert part in flowing
    assert re.search(
        r"Auto computes on (cpu|cuda) On cpu (fp32|bf16): the processor has .*channels last:", flowing
    )
    assert ("CUDA none" in flowing) == (not torch.cuda.is_available())


def test_every_extra_of_the_package_is_told_with_what_it_brings(facts):
    path = Path(__file__).parents[2] / "pyproject.toml"
    offered = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, requirements in offered.items():
        brought = {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}
        assert brought - {"medseg-brn"} <= set(EXTRAS[name][1])
    extras = {extra["name"]: extra for extra in facts["extras"]}
    assert set(extras) == {*offered, "ray"}
    assert extras["test"]["present"]
    assert extras["ray"]["install"] == 'pip install "medseg-brn[ray]"'
