"""Leaving one site out, from end to end, as a real process."""

import json
from pathlib import Path

import pytest
import yaml


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_each_fold_holds_out_a_site_and_the_summary_names_it(phantom, tiny_config, tmp_path, run_command):
    rows = [f"head_00{number},{'zoo' if number < 2 else 'ark'}" for number in range(5)]
    table = ["case,site,image,label"]
    for row in rows:
        name = row.partition(",")[0]
        table.append(f"{row},{phantom}/imagesTr/{name}.nii.gz,{phantom}/labelsTr/{name}.nii.gz")
    (tmp_path / "cohort.csv").write_text("\n".join(table))
    (tmp_path / "cohort.json").write_text((phantom / "manifest.json").read_text())
    # dataset.folds stays at its default of 5, and there are two sites
    options = yaml.safe_load(tiny_config.read_text())
    options["dataset"] = {"path": str(tmp_path / "cohort.csv"), "folds_by": "site"}
    options["patches"]["sites"] = "pure"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    folder = tmp_path / "runs"
    done = run_command("train", tmp_path / "tiny.yaml", "-o", folder, "--all-folds")
    assert done.returncode == 0, done.stderr

    summary = read(folder / "summary.json")
    assert (summary["folds"], summary["folds_by"]) == (2, "site")
    assert [(fold["fold"], fold["site"], fold["cases"]) for fold in summary["per_fold"]] == [
        (0, "ark", 3),
        (1, "zoo", 2),
    ]
    assert {case["case"]: case["fold"] for case in summary["cases"]} == {
        "head_000": 1, "head_001": 1, "head_002": 0, "head_003": 0, "head_004": 0,
    }  # fmt: skip
    for fold, site in enumerate(("ark", "zoo")):
        assert read(folder / f"fold_{fold}" / "split.json")["held_out_site"] == site
        assert read(folder / f"fold_{fold}" / "model" / "model.json")["training"]["held_out_site"] == site
        page = (folder / f"fold_{fold}" / "report.html").read_text(encoding="utf-8")
        assert f"{fold}: all cases of site {site}" in page
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "Leaving one site out in 2 folds",
        "Held-out site",
        "fold 0 (site ark)",
        "a case of its site",
    ):
        assert text in page
    assert len(read(folder / "model" / "model.json")["members"]) == 2

    again = run_command("train", tmp_path / "tiny.yaml", "-o", folder, "--all-folds", "--resume")
    assert again.returncode == 0, again.stderr
    assert read(folder / "summary.json")["per_fold"] == summary["per_fold"]
