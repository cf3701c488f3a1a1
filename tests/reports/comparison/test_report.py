"""The report of a comparison tells what is distinguishable, and stands whatever is missing."""

import json
import re

import numpy as np
import pytest
from markupsafe import escape

from medseg_brn.errors import DataError
from medseg_brn.reports.comparison.record import find_run_file, read_comparison, read_seams
from medseg_brn.reports.comparison.report import find_dice_floor, write_comparison_report

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
RATES = {"clipping": 0.25, "without clips": None}
RUN = {"name": "r0", "input": "zscored", "norm": "batch_renorm", "batch_size": 1, "seed": 0}


def report(folder) -> str:
    write_comparison_report(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def run_row(**changes):
    return RUN | {"status": "finished", "error": "", "dice": 0.5} | changes


def verdict(conclusion: str | None, **changes):
    return {
        "claim": "batch_renorm has a higher Dice than batch_norm at batch size 1 (zscored)",
        "question": "dice",
        "effect": 0.1,
        "interval": [0.05, 0.15],
        "p": 0.001,
        "p_adjusted": 0.002,
        "conclusion": conclusion,
        "norm": "batch_renorm",
        "other": "batch_norm",
        "batch_size": 1,
        "input": "zscored",
    } | changes


@pytest.mark.slow
def test_a_large_comparison_has_every_section_and_loads_nothing(folders, tmp_path):
    html = report(folders.make_large(tmp_path))
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert titles == [
        "Summary",
        "What was compared",
        "Segmentation quality",
        "Training against use",
        "Noise of statistics",
        "During training",
        "Loss",
        "Time and memory",
        "Verdicts",
        "All figures",
        "Runs",
    ]
    assert "The loss is NaN at step 40." in html
    assert html.count("data:image/png") == 11  # one norm diverged before it had any seams
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert "55 of 68 comparisons are not distinguishable with 3 seeds and 24 cases" in html


@pytest.mark.slow
def test_two_reports_of_one_folder_are_equal(folders, tmp_path):
    folders.make_large(tmp_path, norms=("batch_renorm", "batch_norm"), sizes=(1, 2))
    assert report(tmp_path) == report(tmp_path)


def test_one_norm_one_seed_and_nothing_else_is_reported(folders, tmp_path):
    html = report(folders.make_small(tmp_path))
    assert "0.500" in html
    assert "No claim was tested" in html
    assert "no norm has two seeds in every cell" in html


def test_an_empty_summary_and_null_everywhere_are_reported(folders, tmp_path):
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    report(tmp_path)
    cell = {"norm": "a", "batch_size": 1, "input": "raw", "dice_mean": None, "variance_noise": None}
    cell |= {"dice_interval": [None, 1], "mean_noise": {"measured": None}, "tile_mismatch": "much"}
    nulls = dict.fromkeys(("budget", "machine", "learning_rate", "norm_options", "verdicts", "seeds"))
    nulls |= {"batch_size_dependence": [None, {"batch_size_slope": "much"}], "batch_sizes": [1, 2]}
    report(folders.make_small(tmp_path, cells=[cell], **nulls))


def test_a_norm_whose_runs_all_failed_is_listed_with_its_errors(folders, tmp_path):
    folders.make_small(tmp_path, cells=[])
    rows = [run_row(name=f"r{seed}", seed=seed, status="failed", error="no room", dice="") for seed in (0, 1)]
    folders.write_runs(tmp_path, rows)
    html = report(tmp_path)
    assert html.count("no room") == 2
    assert "2 failed" in html


def test_a_run_that_could_not_be_probed_is_listed_beside_the_failed_ones(folders, tmp_path):
    folders.make_small(tmp_path)
    rows = [run_row(), run_row(name="r1", seed=1, error="not probed: ModelError: no loss of this kind")]
    folders.write_runs(tmp_path, rows)
    html = report(tmp_path)
    assert "no loss of this kind" in html
    assert html.count("finished, not probed") == 3  # in a tile, and in both tables
    folders.write_runs(tmp_path, rows[:1])
    assert "All 1 runs finished and were probed." in report(tmp_path)


def test_one_seed_concludes_nothing(folders, tmp_path):
    conclusion = "not distinguishable (one seed: the interval is for other cases only)"
    verdicts = [verdict(conclusion, p=None, p_adjusted=None, batch_size=size) for size in (1, 2)]
    html = report(folders.make_small(tmp_path, verdicts=verdicts, cases=7))
    assert (
        "Nothing is concluded: none of 2 comparisons is distinguishable with 1 seed and 7 cases. One seed "
        "cannot tell a difference between norms from luck."
    ) in html


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "for other cases only"), (3, "over seeds and cases together")]
)
def test_the_interval_of_dice_says_what_it_covers(folders, tmp_path, seeds, said):
    assert f"95\u00a0% interval {said}." in report(folders.make_small(tmp_path, seeds=seeds))


def test_dependence_on_the_batch_size_is_a_table(folders, tmp_path):
    row = {"norm": "batch_renorm", "input": "zscored", "batch_size_slope": 0.0123, "batch_size_ratio": None}
    html = report(folders.make_small(tmp_path, batch_sizes=[1, 8], batch_size_dependence=[row]))
    assert "Dice at smallest / at largest" in html
    assert "+0.012" in html
    assert "Dice per doubling" not in report(folders.make_small(tmp_path, batch_size_dependence=[row]))


def test_noise_is_told_beside_its_predictions(folders, tmp_path):
    cell = {"norm": "a", "batch_size": 1, "input": "raw", "effective_sample_size": 321}
    cell |= {"variance_noise": {"measured": 0.123, "theory": None}}
    html = report(folders.make_small(tmp_path, cells=[cell]))
    assert "0.123" in html
    assert "321" in html
    assert "Departure of scale</" not in html


def test_tables_leave_out_cells_without_a_value(folders, tmp_path):
    cells = [
        {"norm": norm, "batch_size": 1, "input": "raw", "clip_rate_r": rate} for norm, rate in RATES.items()
    ]
    html = report(folders.make_small(tmp_path, cells=cells))
    table = html.split("What the clips cut off", 1)[1].split("</table>", 1)[0]
    assert "clipping" in table
    assert "without clips" not in table


def test_only_distinguishable_verdicts_are_told_and_the_others_counted(folders, tmp_path):
    verdicts = [
        verdict("batch_renorm higher by 0.1"),
        verdict("not distinguishable (one seed: it cannot be tested)", p_adjusted=None, effect=None),
        verdict(None, question="spread", interval=None),
        verdict(
            "Dice rises by 0.1", question="batch_size_slope", other=None, batch_size=None, p_adjusted=0.01
        ),
    ]
    html = report(folders.make_small(tmp_path, verdicts=verdicts, cases=7))
    assert (
        "Dice (higher is better): 1 of 2 comparisons is distinguishable; against batch_norm at batch size 1, "
        "z-scored intensities: batch_renorm higher by 0.1 (adjusted p 0.002)."
    ) in html
    assert "batch_renorm, z-scored intensities: Dice rises by 0.1 (adjusted p 0.01)." in html
    assert "2 of 4 comparisons are not distinguishable with 1 seed and 7 cases" in html
    assert "Spread over seeds" not in html


def test_finished_runs_link_to_their_reports_and_never_out_of_the_folder(folders, tmp_path):
    folders.make_small(tmp_path / "comparison")
    folder = tmp_path / "comparison"
    names = ("a b", "../../outside", "gone", "..", "")
    for place in (folder / "runs" / "a b", tmp_path / "outside"):
        place.mkdir(parents=True)
        (place / "report.html").write_text("", encoding="utf-8")
    folders.write_runs(folder, [run_row(name=name) for name in names])
    html = report(folder)
    assert re.findall(r'<a href="(\./[^"]*)"', html) == ["./runs/a%20b/report.html"]
    outside = read_comparison(folder).runs[1]
    assert find_run_file(folder, outside, "report.html") is None


def test_hostile_names_stay_names(folders, tmp_path):
    folders.make_small(
        tmp_path,
        norm=HOSTILE,
        name=HOSTILE,
        description=HOSTILE,
        norm_options={HOSTILE: HOSTILE},
        machine={"cpu": HOSTILE},
        budget={"rule": "patches", "patches": HOSTILE},
        inputs=[HOSTILE],
        verdicts=[verdict(HOSTILE, claim=HOSTILE, question=HOSTILE, other=HOSTILE, input=HOSTILE)],
    )
    rows = [run_row(norm=HOSTILE, input=HOSTILE, status=HOSTILE, error=HOSTILE)]
    folders.write_runs(tmp_path, rows)
    html = report(tmp_path)
    assert "<img src=x" not in html
    assert str(escape(HOSTILE)) in html


def test_samples_are_means_over_layers_during_training(folders, tmp_path):
    folders.make_small(tmp_path)
    keys = {"run": "r0", "input": "zscored", "norm": "batch_renorm", "batch_size": 1}
    rows = [
        keys | {"seed": seed, "step": 10, "layer": layer, "metric": "clip_rate_r", "value": value}
        for seed, layer, value in ((0, "", 0.2), (1, "", 0.4), (0, "encoder", 0.9))
    ]
    after = {"seed": 0, "step": "", "layer": "", "metric": "clip_rate_r", "value": 0.7}
    folders.write_probes(tmp_path, [*rows, keys | after])
    record = read_comparison(tmp_path)
    assert record.samples_of("clip_rate_r", "zscored") == {1: {"batch_renorm": {10: [0.2, 0.4]}}}
    assert "Clip rate of r" in report(tmp_path)


def test_seams_are_read_and_damaged_ones_are_told(folders, tmp_path):
    folders.make_small(tmp_path)
    folders.write_runs(tmp_path, [run_row()])
    path = tmp_path / "runs" / "r0" / "seams.npz"
    path.parent.mkdir(parents=True)
    folders.write_seams(path, 0.25)
    seams = read_seams(path)
    assert seams.image.shape == (40, 32)
    assert np.abs(seams.tiled - seams.full)[:20].max() == 0
    assert "Largest difference 0.25" in report(tmp_path)
    path.write_bytes(b"PK broken")
    assert "seams not drawn" in report(tmp_path)
    np.savez(path, image=np.zeros((2, 2)), full=np.zeros((2, 2)), tiled=np.zeros(2), cuts_x=[1], cuts_y=[1])
    with pytest.raises(DataError, match=r"shapes \[\(2, 2\), \(2, 2\), \(2,\)\]"):
        read_seams(path)


def test_a_collapse_does_not_press_the_dice_axis_together():
    assert find_dice_floor([0.9, 0.8, 0.5, 0.0]) == 0.5  # half the median is 0.325
    assert find_dice_floor([]) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no summary.json"),
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        (json.dumps({"cells": [{"norm": "a"}]}), "KeyError\\('batch_size'\\)"),
    ],
)
def test_a_damaged_summary_leaves_the_page_that_was_there(tmp_path, content, said):
    (tmp_path / "report.html").write_text("before", encoding="utf-8")
    if content is not None:
        (tmp_path / "summary.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        write_comparison_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "before"


def test_a_damaged_table_is_named(folders, tmp_path):
    folders.make_small(tmp_path)
    folders.write_runs(tmp_path, [run_row(batch_size="many")])
    with pytest.raises(DataError, match=r"runs\.csv has a damaged row"):
        write_comparison_report(tmp_path)
