"""Voxel size, crop and intensities, by hand."""

import pytest

from medseg_brn.cases.fingerprint import ChannelStatistics
from medseg_brn.planning.choice import Choice
from medseg_brn.planning.rules_space import choose_crop, choose_intensity, choose_spacing, coarsen_spacing


def test_isotropic_scans_take_the_median(make_fingerprint):
    choice = choose_spacing(make_fingerprint([(1, 1, 1), (1, 1, 1.2), (1, 1, 2)]))
    assert choice.value == (1, 1, 1.2)
    assert choice.reason == "median of 3 cases, from 1 × 1 × 1 to 1 × 1 × 2 mm"


def test_thick_slices_take_the_tenth_percentile(make_fingerprint):
    """Eleven cases at 2, 3 … 12 mm: the median is 7 mm, the tenth percentile 3 mm."""
    choice = choose_spacing(make_fingerprint([(1, 1, 2 + n) for n in range(11)]))
    assert choice.value == (1, 1, 3)
    assert "axis 2 is 7.0 times as coarse" in choice.reason
    assert "10th percentile, 3 mm" in choice.reason


def test_one_to_one_to_six(make_fingerprint):
    assert choose_spacing(make_fingerprint([(0.5, 0.5, 3)] * 4)).value == (0.5, 0.5, 3)


def test_the_percentile_never_gets_finer_than_the_other_axes(make_fingerprint):
    spacings = [(1, 1, 0.5)] * 4 + [(1, 1, 5)] * 6
    assert choose_spacing(make_fingerprint(spacings)).value == (1, 1, 1)


def test_huge_ct_gets_larger_voxels(make_fingerprint):
    """Of 512³ voxels a patch of 64³ holds 1/512: 16 times the volume, edges 2.52 times as long, hold 1/32."""
    found = make_fingerprint([(1, 1, 1)], (512, 512, 512), {"liver": [1_500_000]})
    choice = coarsen_spacing(Choice((1.0, 1.0, 1.0), "median"), found, (512, 512, 512), (64, 64, 64))
    assert choice.value == pytest.approx((2.52, 2.52, 2.52), rel=0.06)
    assert choice.value[0] >= 2.52
    assert "1/512" in choice.reason


def test_voxels_stay_small_where_a_structure_is(make_fingerprint):
    """250 voxels of 1 mm³ may become 200 of 1.25 mm³, edges 1.077 times as long: one step of 5 %."""
    found = make_fingerprint([(1, 1, 1)], (512, 512, 512), {"lesion": [250]})
    choice = coarsen_spacing(Choice((1.0, 1.0, 1.0), "median"), found, (512, 512, 512), (64, 64, 64))
    assert choice.value == (1.05, 1.05, 1.05)


def test_voxels_of_a_micrometre_stay_above_zero(make_fingerprint):
    """1/512 of the scan is held, so edges become at least 16 ** (1 / 3) times as long: 2.53 µm."""
    found = make_fingerprint([(0.001, 0.001, 0.001)], (512, 512, 512), {"cell": [1_500_000]})
    spacing = Choice((0.001, 0.001, 0.001), "median")
    choice = coarsen_spacing(spacing, found, (512, 512, 512), (64, 64, 64), "the largest patch")
    assert choice.value == (0.00253,) * 3
    assert "the largest patch would hold 1/512" in choice.reason


def test_coarsening_begins_with_the_finest_axes(make_fingerprint):
    found = make_fingerprint([(0.5, 0.5, 2)], (512, 512, 100), {"liver": [1_500_000]})
    choice = coarsen_spacing(Choice((0.5, 0.5, 2.0), "median"), found, (512, 512, 100), (128, 128, 32))
    assert choice.value[2] == 2
    assert 0.5 < choice.value[0] == choice.value[1] < 2


def test_what_holds_enough_stays_as_it_is(make_fingerprint):
    first = Choice((1.0, 1.0, 1.0), "median")
    assert coarsen_spacing(first, make_fingerprint(), (100, 100, 100), (64, 64, 64)) is first


@pytest.mark.parametrize(
    ("modality", "content", "expected"),
    [
        ("ct", (100, 100, 100), "none"),
        ("ct", (80, 70, 100), "body"),
        ("mri", (70, 80, 90), "nonzero"),
        ("mri", (98, 99, 100), "none"),
    ],
)
def test_crop(make_fingerprint, modality, content, expected):
    assert choose_crop(make_fingerprint(content_shape=content), [modality]).value == expected


def test_intensities(make_fingerprint):
    assert choose_intensity(make_fingerprint(), ["ct"]).value == "ct"
    assert "20 to 80 HU" in choose_intensity(make_fingerprint(), ["ct"]).reason
    assert choose_intensity(make_fingerprint(), ["mri"]).value == "zscore"
    assert choose_intensity(make_fingerprint(zero_fraction=0.6), ["mri"] * 4).value == "zscore_nonzero"
    assert choose_intensity(make_fingerprint(zero_fraction=0.6), ["mri", "ct"]).value == "auto"


def test_ct_of_one_value_cannot_be_clipped(make_fingerprint):
    flat = ChannelStatistics(5, 0, 5, 5, 5, 5)
    assert choose_intensity(make_fingerprint(channels=[flat]), ["ct"]).value == "zscore"
