"""Run folders in, one page out, whatever state they are in."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.label_description import Structures
from medseg_brn.config import Experiment
from medseg_brn.errors import DataError
from medseg_brn.evaluation.evaluate import evaluate_case
from medseg_brn.evaluation.results import CaseEvaluation, Evaluation
from medseg_brn.experiment import dump_experiment
from medseg_brn.reports.run_record import tabulate_metrics
from medseg_brn.reports.run_report import write_run_report
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

HOSTILE = "<img src=x onerror=alert(1)> $a$ & 'b'"


def block(end: int) -> Volume:
    array = np.zeros((12, 12, 12), dtype=np.uint8)
    array[2:end, 2:8, 2:8] = 1
    return Volume(array, Grid(array.shape, np.eye(4)))


def write_steps(folder: Path, *rows: str) -> None:
    header = "step,loss,learning_rate,gradient_norm,seconds,loader_share,dice"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]))


@pytest.fixture
def run_folder(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a whole run."""
    return report_of(make_run(tmp_path_factory.mktemp("run")))


def make_run(tmp_path: Path) -> Path:
    """A run of five held-out cases whose predictions get worse and worse; the third has a hostile name."""
    cases = []
    for number, name in enumerate(["a", "b", HOSTILE, "d", "e"]):
        stem = f"case_{number}"
        reference, prediction = block(8), block(8 - number)
        image = Volume(np.random.default_rng(number).random((12, 12, 12), dtype=np.float32), reference.grid)
        paths = {"image": f"data/{stem}_image.nii.gz", "reference": f"data/{stem}.nii.gz"}
        paths["prediction"] = f"validation/{stem}.nii.gz"
        for place, volume in zip(paths.values(), (image, reference, prediction), strict=True):
            write_volume(volume, tmp_path / place)
        paths["image"] = str(tmp_path / paths["image"])
        metrics = evaluate_case(prediction, reference, Structures({"kidney": (1,)}))
        cases.append(CaseEvaluation(name, metrics, paths))
    (tmp_path / "config.yaml").write_text(dump_experiment(Experiment(name="my run")))
    (tmp_path / "validation.json").write_text(json.dumps(Evaluation(tuple(cases), 1.0).as_dict()))
    (tmp_path / "split.json").write_text(json.dumps({"training": ["t"] * 7, "validation": ["v"] * 5}))
    (tmp_path / "model").mkdir()
    training = {"peak_memory_mb": 1250, "torch": "2.6", "threads": 2}
    (tmp_path / "model" / "model.json").write_text(json.dumps({"training": training}))
    write_steps(tmp_path, "1,1.5,0.01,3,0.5,0.1,", "2,1.2,0.01,2,0.3,0.1,0.42")
    return tmp_path


def report_of(folder: Path) -> str:
    write_run_report(folder)
    return (folder / "report.html").read_text()


def test_report_stands_alone(report):
    assert "://" not in report
    sources = re.findall(r'<img[^>]* src="([^"]{0,30})', report)
    assert len(sources) == 6  # three of the range, and the three worst
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(re.findall(r'<img alt="([^"]+)"', report))
    assert not re.findall(r"<(link|iframe|object|embed)\b|<script[^>]+src", report)


def test_report_shows_the_best_the_median_and_the_worst_case(report):
    captions = re.findall(r"<figcaption>((?:Best|Median|Worst)[^,]*), mean Dice ([\d.]+)", report)
    assert [caption.split(":")[0] for caption, _ in captions] == ["Best", "Median", "Worst"]
    assert [float(dice) for _, dice in captions] == [1.0, 0.8, 0.5]  # 2·4/(4+6), 2·2/(2+6)


def test_hostile_case_name_stays_a_name(report):
    assert "<img src=x" not in report
    assert "&lt;img src=x onerror=alert(1)&gt; $a$ &amp; &#39;b&#39;" in report


def test_report_tells_cost_and_experiment(report):
    text = re.sub(r"<[^>]+>|\s+", " ", report)
    assert "0.8 s" in text
    assert "400 ms" in text
    assert "10.0%" in text
    assert "1.25 GB" in text
    assert "torch 2.6, threads 2" in text
    assert "7 trained on, 5 held out" in text


def test_fewer_cases_fill_fewer_roles(run_folder):
    content = json.loads((run_folder / "validation.json").read_text())
    content["cases"] = content["cases"][:1]
    (run_folder / "validation.json").write_text(json.dumps(content))
    captions = re.findall(r"<figcaption>(Best|Median|Worst):", report_of(run_folder))
    assert captions == ["Best"]


def test_a_case_whose_files_are_gone_is_told(run_folder):
    (run_folder / "data" / "case_0.nii.gz").unlink()
    html = report_of(run_folder)
    assert "not drawn" in html
    assert "case_0.nii.gz" in html
    assert len(re.findall("<img ", html)) == 5


def test_run_without_validation_says_so(run_folder):
    (run_folder / "validation.json").unlink()
    assert "No validation data: the run has not come to its validation yet" in report_of(run_folder)
    experiment = Experiment.model_validate({"dataset": {"fold": None}})
    (run_folder / "config.yaml").write_text(dump_experiment(experiment))
    assert "No validation data: all cases were trained on" in report_of(run_folder)


def test_run_that_has_not_begun(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_experiment(Experiment()))
    assert "No step has been recorded yet" in report_of(tmp_path)


def test_a_discriminators_course_is_drawn_where_there_is_one(run_folder, report):
    header = "step,loss,learning_rate,gradient_norm,seconds,loader_share,dice"
    header += ",adversarial_loss,discriminator_loss"
    rows = ("1,1.5,0.01,3,0.5,0.1,,,", "2,1.2,0.01,2,0.3,0.1,0.4,-0.25,1.75")
    (run_folder / "metrics.csv").write_text("\n".join([header, *rows]))
    assert "Discriminator's loss" not in html.unescape(report)
    found = html.unescape(report_of(run_folder))
    assert "Discriminator's loss over steps: from 1.75 to 1.75" in found
    assert "Adversarial loss over steps: from -0.25 to -0.25" in found


def test_class_that_no_case_has(run_folder):
    empty = evaluate_case(block(2), block(2), Structures({"kidney": (1,)}))
    nothing = Evaluation((CaseEvaluation("a", empty),), 1.0).as_dict()
    (run_folder / "validation.json").write_text(json.dumps(nothing))
    assert "–" in report_of(run_folder)


def test_unfinished_row_ends_the_metrics(tmp_path):
    (tmp_path / "model").mkdir()
    training = {"peak_memory_mb": 1250, "torch": "2.6", "threads": 2}
    (tmp_path / "model" / "model.json").write_text(json.dumps({"training": training}))
    write_steps(tmp_path, "1,1.5,0.01,3,0.5,0.1,", "2,1.2,0.0")
    metrics = tabulate_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(metrics["step"], [1])
    assert np.isnan(metrics["dice"]).all()
    assert tabulate_metrics(tmp_path / "none.csv")["loss"].size == 0


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"no run folder.*config\.yaml"):
        write_run_report(tmp_path)


def test_damaged_validation_is_told_and_writes_nothing(run_folder):
    (run_folder / "validation.json").write_text('{"cases"')
    with pytest.raises(DataError, match=r"validation\.json is not valid JSON"):
        write_run_report(run_folder)
    assert not (run_folder / "report.html").exists()


def test_quiet_run_is_told_so(report):
    assert "Nothing suspicious was found in the records of this run." in report
    text = re.sub(r"<[^>]+>|\s+", " ", report)
    assert "The worst held-out cases, none of which stands out" in text


def test_findings_stand_in_the_report_and_in_a_file(run_folder):
    split = {"training": ["t"], "validation": [], "classes": {"background": 0, HOSTILE: 1, "kidney": 2}}
    (run_folder / "split.json").write_text(json.dumps(split))
    (run_folder / "patches.csv").write_text("step,case,loss,voxels\n1,t,0.5,0:9 2:1\n2,t,0.4,0:10\n")
    (run_folder / "fit.json").write_text(
        json.dumps(
            {part: dict.fromkeys("tuv", dice) for part, dice in (("training", 0.9), ("held_out", 0.6))}
        )
    )
    findings = write_run_report(run_folder)
    assert [finding.kind for finding in findings] == ["classes never met", "overfitting"]
    text = re.sub(r"<[^>]+>|\s+", " ", (run_folder / "report.html").read_text())
    assert "No training patch contained &lt;img src=x" in text
    assert re.search(r"kidney\s+1\s+50.00%\s+5.000%", text)
    written = json.loads((run_folder / "diagnosis.json").read_text())
    assert [finding["kind"] for finding in written["findings"]] == ["classes never met", "overfitting"]
    assert written["measured"]["dice_training"] == 0.9
    assert [share["patches"] for share in written["classes"]] == [2, 0, 1]


def test_suspects_are_drawn_with_what_the_model_says(run_folder):
    rows = [f"{step},case{n},{0.1 * 1.05**n},0:8" for step in range(1, 9) for n in range(9)]
    rows = sorted(
        [*rows, *(f"{step},wrong,2.0,0:8" for step in range(1, 9))], key=lambda r: int(r.split(",")[0])
    )
    (run_folder / "patches.csv").write_text("\n".join(["step,case,loss,voxels", *rows, ""]))
    paths = {"image": "data/case_2_image.nii.gz", "reference": "data/case_2.nii.gz"}
    entry = {"case": "wrong", **paths, "prediction": "validation/case_4.nii.gz"}
    (run_folder / "suspects.json").write_text(json.dumps({"cases": [entry]}))
    html = report_of(run_folder)
    assert "Suspect training case wrong, late loss 2," in html
    assert "1 training case is predicted far worse than the others" in html
