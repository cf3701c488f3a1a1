"""The whole study, as small as it gets, as a person runs it."""

import csv
import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_command_leaves_claims_measurements_and_a_page(tmp_path):
    folder = tmp_path / "outcome"
    command = [sys.executable, "-m", "medseg_brn", "study", "confounding", "-o", str(folder)]
    done = subprocess.run([*command, "--scale", "0.01"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    names = [claim["name"] for claim in summary["claims"]]
    assert len(names) == 22
    for name in (
        "formula, statistics of the mixture",
        "retained, renorm (3, 5) over renorm (3, 1)",
        "perfect confounding, layers",
        "null arm, no batch effect, renorm (3, 5)",
    ):
        assert name in names
    assert all(f"{name}: " in done.stdout for name in names)
    with (folder / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"layer", "association", "marker", "diagnosis", "null arm"}
    layers = [row for row in rows if row["part"] == "layer" and row["norm"] == "renorm (1.5, 0.5)"]
    assert len(layers) == 2 * 2 * 6
    assert all(abs(float(row["measured"]) - float(row["expected"])) < 0.05 for row in layers)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 13
    assert "Nothing to find" in page
