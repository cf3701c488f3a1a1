"""Classes that were never met, cases that stand out: worked out by hand."""

import csv

import numpy as np
import pytest

from medseg_brn.config import PatchesConfig
from medseg_brn.reports.diagnosis.cases import (
    annotated_share,
    check_classes,
    check_held_out,
    find_hard_cases,
    find_suspects,
    share_classes,
)
from medseg_brn.reports.diagnosis.finding import robust_z
from medseg_brn.reports.step_records import PatchRecord, read_patches

NAMES = ["background", "liver", "tumour"]


def make_patches(losses: dict[str, list[float]]) -> list[PatchRecord]:
    """One patch of every case per step."""
    steps = len(next(iter(losses.values())))
    return [
        PatchRecord(step + 1, case, values[step], {0: 8})
        for step in range(steps)
        for case, values in losses.items()
    ]


def make_evaluation(*dice: float | None) -> dict:
    cases = [
        {"case": f"case{number}", "classes": {"liver": {"dice": value}}} for number, value in enumerate(dice)
    ]
    defined = [value for value in dice if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return {"cases": cases, "summary": {"classes": {"liver": {"dice_mean": mean}}}}


def test_shares_of_patches_and_voxels():
    patches = [PatchRecord(1, "a", 1.0, {0: 6, 1: 2}), PatchRecord(1, "b", 1.0, {0: 8})]
    shares = share_classes(patches, NAMES)
    assert [(s.name, s.patches, s.patch_share, s.voxel_share) for s in shares] == [
        ("background", 2, 1.0, 14 / 16),
        ("liver", 1, 0.5, 2 / 16),
        ("tumour", 0, 0.0, 0.0),
    ]
    assert share_classes([], NAMES) == []


def test_voxels_to_be_ignored_are_no_class():
    patches = [PatchRecord(1, "a", 1.0, {0: 3, 1: 1, 3: 12})]
    assert annotated_share(patches, num_classes=3) == 0.25
    assert [share.voxel_share for share in share_classes(patches, NAMES)] == [0.75, 0.25, 0.0]
    assert annotated_share([], 3) == 1.0


def test_classes_never_and_rarely_met():
    patches = [PatchRecord(n, "a", 1.0, {0: 8}) for n in range(200)]
    patches[0] = PatchRecord(1, "a", 1.0, {0: 7, 1: 1})
    never, rare = check_classes(share_classes(patches, NAMES), len(patches), PatchesConfig())
    assert (never.weight, never.what) == (3, "No training patch contained tumour")
    assert rare.numbers == "liver in 1 of 200 patches"
    assert never.remedy.startswith(
        "Set patches.foreground_by=class, or raise patches.foreground_fraction above 0.5"
    )
    patches[1:3] = patches[:1] * 2  # 3 of 200 are more than one in a hundred
    assert [
        finding.kind for finding in check_classes(share_classes(patches, NAMES), 200, PatchesConfig())
    ] == ["classes never met"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"foreground_fraction": 0},
            "Set patches.foreground_by=class and raise patches.foreground_fraction above 0;",
        ),
        ({"foreground_by": "class", "foreground_fraction": 1}, "Enlarge patches.size;"),
    ],
)
def test_the_remedy_is_one_that_is_not_taken_yet(options, expected):
    shares = share_classes([PatchRecord(1, "a", 1.0, {0: 8, 1: 1})], NAMES)
    (finding,) = check_classes(shares, 1, PatchesConfig(**options))
    assert finding.remedy.startswith(expected)


def test_robust_z_by_hand():
    # median 3, deviations 2 1 0 1 6: MAD 1
    np.testing.assert_allclose(robust_z(np.array([1, 2, 3, 4, 9.0])), np.array([-2, -1, 0, 1, 6]) / 1.4826)
    assert robust_z(np.array([1.0, 1.0, 1.0, 9.0])).tolist() == [0, 0, 0, 0]


def test_a_case_that_is_not_learnt_is_suspect():
    losses = {f"case{n}": [1.0] * 8 + [0.1 * 1.05**n] * 8 for n in range(9)}
    losses["wrong"] = [1.0] * 16
    (suspect,) = find_suspects(make_patches(losses))
    assert (suspect.case, suspect.loss) == ("wrong", 1.0)
    # the logarithms are evenly spaced, 0 to 8 times ln 1.05, and ln 10 for the suspect: median 4.5, MAD 2.5
    expected = (np.log(10) / np.log(1.05) - 4.5) / (1.4826 * 2.5)
    assert suspect.z == pytest.approx(expected)
    assert suspect.median_loss == pytest.approx(0.1 * (1.05**4 + 1.05**5) / 2)


@pytest.mark.parametrize(("cases", "steps"), [(7, 16), (9, 4)])
def test_nothing_is_said_of_few_cases_or_patches(cases, steps):
    losses = {f"case{n}": [0.1 * 1.05**n] * steps for n in range(cases - 1)}
    assert find_suspects(make_patches({**losses, "wrong": [1.0] * steps})) == []


def test_early_losses_do_not_count():
    losses = {f"case{n}": [0.1 * 1.05**n] * 16 for n in range(9)}
    losses["late bloomer"] = [9.0] * 8 + [0.1] * 8
    assert find_suspects(make_patches(losses)) == []
    assert find_suspects([]) == []


def test_hard_held_out_cases():
    few = find_hard_cases(make_evaluation(0.9, 0.3, 0.8))
    assert [(dice, case["case"]) for dice, case in few] == [(0.3, "case1")]
    assert find_hard_cases(make_evaluation(0.9, 0.1)) == []
    spread = [0.90, 0.91, 0.89, 0.92, 0.88, 0.90, 0.91, 0.6]
    many = find_hard_cases(make_evaluation(*spread))
    assert [case["case"] for _, case in many] == ["case7"]
    (finding,) = check_held_out(make_evaluation(*spread))
    assert finding.numbers == "case7 (Dice 0.600); median 0.900"


def test_a_class_that_is_missed():
    (finding,) = check_held_out(make_evaluation(0.0, 0.01, 0.02))
    assert (finding.kind, finding.numbers) == ("classes missed", "mean Dice of liver 0.010")
    assert check_held_out(make_evaluation(None, None)) == []
    assert check_held_out(None) == []


def test_patches_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "patches.csv"
    records = [PatchRecord(1, 'odd, "name"', 0.25, {0: 60, 4: 4}), PatchRecord(2, "b", float("nan"), {})]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "case", "loss", "voxels"])
        writer.writerows(record.as_row() for record in records)
    first, second = read_patches(path)
    assert first == records[0]
    assert (second.step, second.voxels) == (2, {})
    assert np.isnan(second.loss)
    text = path.read_text()
    for cut in ("2,b,nan", "2,b,na", "2,", "2,b,0.5,0:"):
        path.write_text(text[: text.index("2,b")] + cut)
        assert [record.step for record in read_patches(path)] == [1], cut
