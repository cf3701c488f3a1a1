"""The fingerprint, against numbers worked out by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.fingerprint import HISTOGRAM_BINS, SAMPLED_VOXELS, CaseFacts, compute_fingerprint
from medseg_brn.errors import DataError

Maker = Callable[..., Path]


def test_intensities_are_those_of_the_foreground(
    make_decathlon: Maker, write_nifti: Callable, make_label_map: Callable
) -> None:
    folder = make_decathlon(cases=2)
    foreground = make_label_map() > 0  # 48 voxels
    for n, level in enumerate((10, 30)):
        image = np.full(foreground.shape, 5000, np.int16)
        image[foreground] = level
        write_nifti(folder / "imagesTr" / f"p{n}.nii.gz", image)
    dataset = read_dataset(folder)
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    (channel,) = fingerprint.channels
    assert (channel.mean, channel.std) == (20, 10)
    assert (channel.percentile_00_5, channel.percentile_99_5) == (10, 30)
    assert (channel.minimum, channel.maximum) == (10, 30)
    assert fingerprint.class_voxels == {"background": 2 * (8 * 9 * 10 - 48), "left": 48, "right": 48}


def test_every_channel_is_measured(
    make_nnunet: Maker, sample_image: Callable, make_label_map: Callable
) -> None:
    dataset = read_dataset(make_nnunet(cases=1))
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    foreground = make_label_map((1, 2, 4)) > 0
    means = [sample_image(channel)[foreground].mean() for channel in range(2)]
    assert [channel.mean for channel in fingerprint.channels] == pytest.approx(means)


def test_geometry_is_the_median_along_canonical_axes(
    make_decathlon: Maker, write_nifti: Callable, sample_image: Callable, make_label_map: Callable
) -> None:
    """p0 stays (8, 9, 10) at 1 × 1 × 2 mm. p1 and p2 are stored with Z first: (10, 8, 9) at 3 × 1 × 1 mm."""
    folder = make_decathlon(cases=3)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3, 1, -1, 1
    for n in (1, 2):
        for kind, array in (("imagesTr", sample_image(n)), ("labelsTr", make_label_map())):
            write_nifti(folder / kind / f"p{n}.nii.gz", np.moveaxis(array, 2, 0), affine)
    dataset = read_dataset(folder)
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    assert fingerprint.spacing_mm == (1, 1, 3)
    assert fingerprint.shape == (8, 9, 10)


def test_large_cases_are_sampled_the_same_every_time(make_decathlon: Maker, write_nifti: Callable) -> None:
    folder = make_decathlon(cases=2)
    rng = np.random.default_rng(0)
    for n in range(2):
        write_nifti(
            folder / "imagesTr" / f"p{n}.nii.gz", rng.normal(100 * n, 1, (40, 40, 40)).astype(np.float32)
        )
        write_nifti(folder / "labelsTr" / f"p{n}.nii.gz", np.ones((40, 40, 40), np.uint8))
    dataset = read_dataset(folder)
    first = compute_fingerprint(dataset, dataset.cases)
    assert first.class_voxels["left"] == 2 * 40**3 > 2 * SAMPLED_VOXELS
    assert first.channels[0].mean == pytest.approx(50, abs=0.1)
    assert compute_fingerprint(dataset, dataset.cases[::-1]) == first


def test_a_large_structure_weighs_no_more_than_a_sample(make_decathlon: Maker, write_nifti: Callable) -> None:
    folder = make_decathlon(cases=2)
    for n, size in enumerate((22, 60)):  # 10 648 and 216 000 voxels
        write_nifti(folder / "imagesTr" / f"p{n}.nii.gz", np.full((size,) * 3, 10 * n, np.int16))
        write_nifti(folder / "labelsTr" / f"p{n}.nii.gz", np.ones((size,) * 3, np.uint8))
    dataset = read_dataset(folder)
    assert compute_fingerprint(dataset, dataset.cases).channels[0].mean == 5


def test_cases_without_foreground_add_no_intensities(make_decathlon: Maker, write_nifti: Callable) -> None:
    folder = make_decathlon(cases=2)
    dataset = read_dataset(folder)
    expected = compute_fingerprint(dataset, dataset.cases[:1]).channels
    write_nifti(folder / "labelsTr" / "p1.nii.gz", np.zeros((8, 9, 10), np.uint8))
    assert compute_fingerprint(dataset, dataset.cases).channels == expected
    with pytest.raises(DataError, match=r"None of the 1 cases of 'Blocks' has a foreground voxel.*\(1, 2\)"):
        compute_fingerprint(dataset, dataset.cases[1:])


def test_it_is_json_and_tells_of_each_case(make_decathlon: Maker) -> None:
    dataset = read_dataset(make_decathlon())
    done: list[str] = []
    fingerprint = compute_fingerprint(dataset, dataset.cases, on_case=lambda case: done.append(case.name))
    assert done == ["p0", "p1", "p2"]
    assert json.loads(json.dumps(fingerprint.as_dict()))["spacing_mm"] == [1, 1, 2]


def test_each_case_is_told_by_name(make_decathlon: Maker, write_nifti: Callable) -> None:
    """24 voxels of 1 × 1 × 2 mm are 48 mm³."""
    folder = make_decathlon(cases=2)
    image = np.zeros((8, 9, 10), np.int16)
    image[2:6, 3:9, 1:10] = 7
    write_nifti(folder / "imagesTr" / "p1.nii.gz", image)
    dataset = read_dataset(folder)
    found = compute_fingerprint(dataset, dataset.cases[::-1], contents=True)
    assert [case.name for case in found.cases] == ["p0", "p1"]
    case = found.cases[1]
    assert case.spacing_mm == (1, 1, 2) and case.shape == (8, 9, 10) and case.extent_mm == (8, 9, 20)
    assert case.class_voxels == (8 * 9 * 10 - 48, 24, 24)
    assert case.class_volumes_ml[1:] == (0.048, 0.048)
    assert case.content_shape == (4, 6, 9)
    assert case.content_fraction == pytest.approx(216 / 720)
    assert case.zero_fraction == pytest.approx(504 / 720)
    assert case.means == (pytest.approx(7 * 216 / 720),)
    assert case.shape_at((2, 3, 1)) == (4, 3, 20)
    assert case.shape_at((2, 3, 1), cropped=True) == (2, 2, 18)
    assert found.class_volumes_ml("left") == [0.048, 0.048]
    assert found.anisotropy == 2


def test_a_case_without_a_class_is_not_counted_for_it(
    make_decathlon: Maker, write_nifti: Callable, make_label_map: Callable
) -> None:
    folder = make_decathlon(cases=3)
    write_nifti(folder / "labelsTr" / "p2.nii.gz", make_label_map((1,)))
    dataset = read_dataset(folder)
    found = compute_fingerprint(dataset, dataset.cases)
    assert found.class_cases == {"background": 3, "left": 3, "right": 2}
    assert len(found.class_volumes_ml("right")) == 2


def test_histograms_hold_the_voxels_between_the_percentiles(
    make_decathlon: Maker, write_nifti: Callable
) -> None:
    """0 … 999 once each: from 4.995 to 994.005 lie 5 … 994, which are 990 values."""
    folder = make_decathlon(cases=1)
    write_nifti(folder / "imagesTr" / "p0.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    write_nifti(folder / "labelsTr" / "p0.nii.gz", np.ones((10, 10, 10), np.uint8))
    dataset = read_dataset(folder)
    (channel,) = compute_fingerprint(dataset, dataset.cases).channels
    assert channel.histogram is not None and channel.zscores is not None
    assert (channel.histogram.low, channel.histogram.high) == (pytest.approx(4.995), pytest.approx(994.005))
    assert len(channel.histogram.counts) == HISTOGRAM_BINS
    assert sum(channel.histogram.counts) == 990
    assert channel.zscores.high == pytest.approx((994.005 - 499.5) / np.arange(1000).std(), rel=1e-5)
    assert channel.zscores.counts == channel.histogram.counts


def test_sites_and_percentiles_are_told(make_decathlon: Maker, tmp_path: Path) -> None:
    folder = make_decathlon(cases=3)
    rows = [f"p{n},{folder}/imagesTr/p{n}.nii.gz,{folder}/labelsTr/p{n}.nii.gz,{'AAB'[n]}" for n in range(3)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,label,site", *rows]))
    dataset = read_dataset(tmp_path / "cases.csv")
    told = compute_fingerprint(dataset, dataset.cases).as_dict()
    assert told["sites"] == {"A": 2, "B": 1}
    assert told["spacing_percentiles_mm"]["50"] == [1, 1, 2]
    assert told["extent_percentiles_mm"]["100"] == [8, 9, 20]
    assert told["cases"][2]["site"] == "B"


def test_processes_find_the_same(make_decathlon: Maker) -> None:
    dataset = read_dataset(make_decathlon())
    done: list[str] = []
    alone = compute_fingerprint(dataset, dataset.cases, contents=True)
    together = compute_fingerprint(
        dataset, dataset.cases, on_case=lambda case: done.append(case.name), contents=True, jobs=2
    )
    assert together == alone
    assert done == ["p0", "p1", "p2"]


def test_voxels_that_nobody_annotated_are_no_foreground(
    make_nnunet: Maker, write_nifti: Callable, make_label_map: Callable
) -> None:
    """The fourth slab is to be ignored: it is no class, and its intensities are not the foreground's."""
    labels = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4, "ignore": 5}
    folder = make_nnunet(cases=1, labels=labels)
    label_map = make_label_map((1, 2, 4, 5))
    write_nifti(folder / "labelsTr" / "p_0.nii.gz", label_map)
    for channel in range(2):
        image = np.where(label_map == 5, 9000, 10).astype(np.int16)
        write_nifti(folder / "imagesTr" / f"p_0_{channel:04d}.nii.gz", image)
    dataset = read_dataset(folder)
    found = compute_fingerprint(dataset, dataset.cases)
    assert list(found.class_voxels.values()) == [8 * 9 * 10 - 96, 24, 24, 24]
    assert found.channels[0].maximum == 10


def test_a_scan_that_was_not_looked_into_is_kept_whole() -> None:
    case = CaseFacts("a", None, (1.0, 1.0, 1.0), (4, 4, 4), (60, 4), 0.5)
    assert case.content_fraction == 1
    assert case.shape_at((2, 2, 2), cropped=True) == (2, 2, 2)


def test_the_abdomen_ct(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "abdomen_ct"
    manifest = tmp_path / "abdomen.csv"
    manifest.write_text(
        f"case,image,label\na,{folder / 'example_ct_sm.nii.gz'},{folder / 'example_seg.nii.gz'}\n"
    )
    dataset = read_dataset(manifest, modalities=("ct",))
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    assert dataset.num_classes == 42
    assert fingerprint.spacing_mm == (3, 3, 3)
    assert fingerprint.shape == (122, 101, 30)
    assert -1100 < fingerprint.channels[0].percentile_00_5 < -500, "lungs"
    assert 100 < fingerprint.channels[0].percentile_99_5 < 1500, "bone"
