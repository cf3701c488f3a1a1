"""A cross-validation from end to end, as real processes: resumed, failing in part, and recomputed by hand."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from medseg_brn.config import Experiment
from medseg_brn.cross_validation.execute import run_cross_validation
from medseg_brn.cross_validation.final import EXPECTED
from medseg_brn.cross_validation.fold import Fold, do_fold
from medseg_brn.cross_validation.watching import read_last_step
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.experiment import dump_experiment
from medseg_brn.models.package import load_model

slow = pytest.mark.slow


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def make_dice_table(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names, and Dice (cases, classes) of the label maps as they lie in the folder."""
    cases = sorted(read(folder / "summary.json")["cases"], key=lambda case: case["case"])
    values = [value for value in read(folder / "summary.json")["label_values"].values() if value]
    table = []
    for case in cases:
        predicted = np.asarray(nibabel.load(folder / "out_of_fold" / f"{case['case']}.nii.gz").dataobj)
        reference = np.asarray(nibabel.load(case["reference"]).dataobj)
        table.append(
            [
                2
                * np.sum((predicted == v) & (reference == v))
                / (np.sum(predicted == v) + np.sum(reference == v))
                for v in values
            ]
        )
    return [case["case"] for case in cases], np.array(table)


@slow
def test_the_summary_is_what_the_label_maps_say(finished):
    summary = read(finished / "summary.json")
    names, dice = make_dice_table(finished)
    assert names == [f"head_{number:03d}" for number in range(6)]
    assert summary["summary"]["dice_mean"] == pytest.approx(dice.mean())
    drawn = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=2000)
    for column, found in enumerate(summary["summary"]["classes"].values()):
        assert found["dice_mean"] == pytest.approx(dice[:, column].mean())
        means = [np.repeat(dice[:, column], counts).mean() for counts in drawn]
        assert found["dice_interval_95"] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    fold_of = {case["case"]: case["fold"] for case in summary["cases"]}
    means = [dice[[fold_of[name] == fold for name in names]].mean() for fold in range(3)]
    assert [fold["dice_mean"] for fold in summary["per_fold"]] == pytest.approx(means)
    assert summary["spread_over_folds"]["dice_mean_sd"] == pytest.approx(np.std(means, ddof=1))
    assert all(fold["training_seconds"] > 0 for fold in summary["per_fold"])


@slow
def test_every_case_is_segmented_by_a_model_that_has_not_seen_it(finished):
    fold_of = {case["case"]: case["fold"] for case in read(finished / "summary.json")["cases"]}
    for fold in range(3):
        split = read(finished / f"fold_{fold}" / "split.json")
        held_out = [name for name, own in fold_of.items() if own == fold]
        assert (len(held_out), split["validation"]) == (2, held_out)
        assert not set(split["training"]) & set(held_out)
        for name in held_out:
            model = load_model(finished / f"fold_{fold}", "cpu")
            image = next(
                case["image"] for case in read(finished / "summary.json")["cases"] if case["case"] == name
            )
            np.testing.assert_array_equal(
                model.predict(image).array,
                np.asarray(nibabel.load(finished / "out_of_fold" / f"{name}.nii.gz").dataobj),
            )


@slow
def test_the_model_is_the_ensemble_and_says_how_good_its_members_are(finished):
    model = load_model(finished)
    assert len(model.members) == 3
    assert len({member.preprocessing.spacing_mm for member in model.members}) == 1
    told = model.description.training["cross_validation"]
    expected = read(finished / "summary.json")
    assert told["out_of_fold"] == expected["summary"]
    assert told["out_of_fold_postprocessed"] == expected["postprocessed"]
    assert "not evaluated itself" in told["meaning"]
    configs = [yaml.safe_load((finished / f"fold_{fold}" / "config.yaml").read_text()) for fold in range(3)]
    assert [config["dataset"]["fold"] for config in configs] == [0, 1, 2]
    assert not list(finished.glob("fold_*/cache"))


@slow
def test_the_report_shows_every_fold_and_case(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    for wanted in (
        "fold_2/report.html",
        "head_005",
        "Worst cases",
        "data:image/png",
        "keep the largest piece",
    ):
        assert wanted in page


@slow
def test_a_single_model_is_trained_on_every_case(wider):
    model = load_model(wider)
    assert len(model.members) == 1
    training = model.description.training
    assert (training["fold"], training["training_cases"]) == (None, 6)
    assert "expected quality is the out-of-fold metric" in training["cross_validation"]["meaning"]


@slow
def test_a_finished_one_is_not_done_again(finished, tiny_config, run_command):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("fold_*/**/*") if path.is_file()}
    refused = run_command("train", tiny_config, "-o", finished, "--all-folds")
    assert refused.returncode == 1
    assert "already holds a cross-validation; go on with it by --resume" in refused.stderr
    other = run_command("train", tiny_config, "-o", finished, "--all-folds", "--resume", "-s", "seed=5")
    assert other.returncode == 1
    assert "cannot go on with other options: seed (0 → 5)" in other.stderr
    done = run_command("train", tiny_config, "-o", finished, "--all-folds", "--resume")
    assert done.returncode == 0, done.stderr
    assert before == {
        path: path.stat().st_mtime_ns for path in finished.glob("fold_*/**/*") if path.is_file()
    }


@slow
def test_one_that_was_killed_is_brought_to_the_same_end(
    finished, tiny_config, command_line, run_command, tmp_path
):
    folder = tmp_path / "killed"
    arguments = ("train", tiny_config, "-o", folder, "--all-folds", "--processes", 2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command_line(*arguments), env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while (read_last_step(folder / "fold_1" / "metrics.csv") or 0) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    assert run_command(*arguments, "--resume").returncode == 0
    for number, (name, dice) in enumerate(zip(*make_dice_table(finished), strict=True)):
        found_names, found = make_dice_table(folder)
        assert found_names[number] == name
        np.testing.assert_allclose(found[number], dice, rtol=1e-5)


@slow
def test_a_fold_that_fails_leaves_the_others_and_the_exit_code_tells(
    finished, tiny_config, run_command, tmp_path
):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    (folder / "fold_1" / "done.json").unlink()
    (folder / "fold_1" / "config.yaml").write_text("seed: none\n")
    (folder / "fold_2" / "done.json").unlink()
    (folder / "data" / "fold_2" / "split.json").write_text("damaged")  # its cases cannot be prepared
    failed = run_command("train", tiny_config, "-o", folder, "--all-folds", "--resume")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "fold_1 failed: " in failed.stderr
    assert "fold_2 failed: " in failed.stderr
    assert "Failed: fold_1, fold_2; no model was made" in failed.stdout
    summary = read(folder / "summary.json")
    assert [fold["status"] for fold in summary["per_fold"]] == ["finished", "failed", "failed"]
    assert (summary["summary"]["cases"], len(summary["cases"])) == (2, 2)
    assert not (folder / "model").exists()
    assert "Not finished: fold 1, fold 2" in (folder / "report.html").read_text(encoding="utf-8")


@slow
def test_a_last_training_that_fails_leaves_no_model(finished, wider, tiny_config, run_command, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(wider, folder)
    (folder / "all" / "done.json").unlink()
    (folder / "all" / "config.yaml").write_text("seed: none\n")
    options = ("-s", "network.channels=[6,8]", "-s", "training.steps=8", "--final", "single", "--resume")
    failed = run_command("train", tiny_config, "-o", folder, "--all-folds", *options)
    assert failed.returncode == 1
    assert "Failed: all; no model was made" in failed.stdout
    assert not (folder / "model").exists()
    summary = read(folder / "summary.json")
    assert summary["final_run"]["status"] == "failed"
    assert summary["final_run"]["error"] in failed.stderr
    assert "Not finished: the last training" in (folder / "report.html").read_text(encoding="utf-8")
    refused = run_command("models", "choose", finished, folder, "-o", tmp_path / "chosen")
    assert refused.returncode == 1
    assert "the last training, on all cases" in refused.stderr


@slow
def test_configurations_are_compared_and_one_becomes_the_model(finished, wider, run_command, tmp_path):
    output = tmp_path / "chosen"
    arguments = ("models", "choose", finished, wider, "-o", output, "--ensembles")
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    choice = read(output / "choice.json")
    assert done.stdout.startswith(f"Chosen: {choice['chosen']}. ")
    found = {row["name"]: row["dice_mean"] for row in choice["candidates"]}
    assert found["small"] == pytest.approx(make_dice_table(finished)[1].mean())
    assert found["wide"] == pytest.approx(make_dice_table(wider)[1].mean())
    pair = output / "candidates" / "small+wide"
    assert len(list(pair.glob("*.nii.gz"))) == 6
    _check_averaged(pair, finished, wider)
    networks = {"small": 3, "wide": 1, "small+wide": 4, "wide+small": 4}
    model = load_model(output)
    assert len(model.members) == networks[choice["chosen"]]
    kind = {"small": "ensemble", "wide": "single"}.get(choice["chosen"], "pair")
    told = model.description.training["cross_validation"]
    assert told["meaning"].startswith(f"{EXPECTED[kind]} The configuration was chosen among others")
    assert told["out_of_fold"] == choice["summary"]
    assert "Post-processing" in (output / "choice.html").read_text(encoding="utf-8")
    times = {path: path.stat().st_mtime_ns for path in pair.iterdir()}
    assert run_command(*arguments).returncode == 0
    assert times == {path: path.stat().st_mtime_ns for path in pair.iterdir()}, "predicted again"


def _check_averaged(pair: Path, *runs: Path) -> None:
    """The pair's label map of a case is where the mean of both folds' probabilities is largest."""
    case = read(runs[0] / "summary.json")["cases"][0]
    probabilities = [
        load_model(run / f"fold_{case['fold']}", "cpu").predict(case["image"], probabilities=True)[1]
        for run in runs
    ]
    expected = np.mean(probabilities, axis=0).argmax(0)
    written = np.asarray(nibabel.load(pair / f"{case['case']}.nii.gz").dataobj)
    assert np.mean(written == expected) > 0.999  # bf16 decides near-ties


def make_experiment(path: Path, **training: object) -> Experiment:
    return Experiment.model_validate(
        {
            "dataset": {"path": str(path), "folds": 3},
            "network": {"channels": (4, 8)},
            "training": {"steps": 1, "batch_size": 2, **training},
        }
    )


def write_beginning(folder: Path, experiment: Experiment) -> None:
    """What stands in the folder as soon as its cross-validation begins."""
    dataset = experiment.dataset.model_copy(update={"fold": None})
    begun = experiment.model_copy(update={"dataset": dataset})
    (folder / "cross_validation.yaml").write_text(dump_experiment(begun), encoding="utf-8")


def test_whatever_goes_wrong_in_a_fold_is_its_result(tmp_path):
    fold = Fold(make_experiment(tmp_path / "nowhere"), tmp_path / "run" / "fold_0", tmp_path / "data")
    result = do_fold(fold)
    assert (result.name, result.status) == ("fold_0", "failed")
    assert "nowhere" in result.error
    assert not fold.is_done


def test_what_nobody_expected_keeps_its_traceback(phantom, tmp_path):
    fold = Fold(make_experiment(phantom), tmp_path / "run" / "fold_0", "no path")
    path = fold.folder / "traceback.txt"
    result = do_fold(fold)
    assert result.error.startswith("TypeError: ")
    assert f"the traceback stands in {path}" in result.error
    assert path.read_text(encoding="utf-8").startswith("Traceback")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, r"training.steps \(10 → 5; it can be raised, not lowered\)"),
        ({"learning_rate": 0.5}, r"training.learning_rate \(.* → 0.5; fold_1 learnt with the former value\)"),
        ({"gradient_clip": 3.0, "steps": 20}, r"training.gradient_clip \(.* → 3.0; fold_1 learnt"),
        ({"batch_size": 7}, r"training.batch_size \(2 → 7\)"),
    ],
)
def test_a_change_that_cannot_be_honoured_is_refused_before_anything_is_written(changes, message, tmp_path):
    experiment = make_experiment(tmp_path / "nowhere", steps=10, precision="fp32")
    folder = tmp_path / "run"
    (folder / "fold_1").mkdir(parents=True)
    write_beginning(folder, experiment)
    (folder / "fold_1" / "done.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = make_experiment(tmp_path / "nowhere", **{"steps": 10, "precision": "auto", **changes})
    with pytest.raises(ConfigError, match=f"cannot go on with other options: {message}"):
        run_cross_validation(changed, folder, resume=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_can_be_honoured_is_not_refused(tmp_path):
    """More steps, and another learning rate before any fold is done; then the dataset is missing."""
    folder = tmp_path / "run"
    folder.mkdir()
    begun = make_experiment(tmp_path / "nowhere", steps=10, precision="fp32")
    write_beginning(folder, begun)
    with pytest.raises(DataError, match="nowhere"):
        run_cross_validation(
            make_experiment(tmp_path / "nowhere", steps=20, learning_rate=0.5), folder, resume=True
        )


@pytest.mark.parametrize("found", ["file", "folder"])
def test_a_place_with_something_else_is_refused(found, tmp_path):
    place = tmp_path / "run"
    if found == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no cross-validation"):
        run_cross_validation(make_experiment(tmp_path), place)


def test_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="not by torchrun"):
        run_cross_validation(make_experiment(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("step,loss\n", None), ("step,loss\n1,.5\n2,.4\n", 2), ("step,loss\n1,.5\n23,", 1)],
)
def test_the_last_whole_row_says_how_far_a_run_is(text, expected, tmp_path):
    assert read_last_step(tmp_path / "metrics.csv") is None
    (tmp_path / "metrics.csv").write_text(text)
    assert read_last_step(tmp_path / "metrics.csv") == expected
