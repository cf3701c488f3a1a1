"""Volumes and mean intensities: two voxels of 2 × 3 × 4 mm, with answers worked out by hand."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.inference.measurements import as_rows, measure_structures, write_measurements
from medseg_brn.volumes.volume import Grid, Volume

GRID = Grid((5, 1, 1), np.diag([-2.0, 3.0, 4.0, 1.0]))
LABEL_MAP = Volume(np.array([0, 7, 7, 500, 0], np.uint16).reshape(5, 1, 1), GRID)
CT = Volume(np.array([-1000, 40, 50, 300, 9], np.int16).reshape(5, 1, 1), GRID)


def test_by_hand():
    liver, absent, bone = measure_structures(LABEL_MAP, [CT], {"liver": [7], "spleen": [9], "bone": [500]})
    assert (liver.structure, liver.label, liver.volume_ml) == ("liver", 7, pytest.approx(0.048))
    assert liver.mean_intensity == (45.0,)
    assert (absent.volume_ml, absent.mean_intensity) == (0.0, None)
    assert (bone.volume_ml, bone.mean_intensity) == (pytest.approx(0.024), (300.0,))


def test_regions_may_overlap():
    both, bone = measure_structures(LABEL_MAP, [CT], {"both": [7, 500], "bone": [500]})
    assert (both.label, both.volume_ml) == ("7+500", pytest.approx(0.072))
    assert both.mean_intensity == (pytest.approx(130.0),)  # of 40, 50 and 300
    assert (bone.label, bone.mean_intensity) == (500, (300.0,))


def test_every_channel_has_its_mean_and_a_sheared_voxel_its_true_volume():
    sheared = np.diag([2.0, 3.0, 4.0, 1.0])
    sheared[0, 1] = 1.5  # changes the axes' lengths and not the volume
    grid = Grid((5, 1, 1), sheared)
    channels = [Volume(CT.array, grid), Volume(CT.array * 2.0, grid)]
    (liver,) = measure_structures(Volume(LABEL_MAP.array, grid), channels, {"liver": [7]})
    assert liver.mean_intensity == (45.0, 90.0)
    assert liver.volume_ml == pytest.approx(0.048)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3))
def test_as_masks_say(seed, shape):
    rng = np.random.default_rng(seed)
    grid = Grid(shape, np.diag([1.0, 2.0, 0.5, 1.0]))
    label_map, image = rng.integers(0, 5, shape), rng.normal(size=shape).astype(np.float32)
    found = measure_structures(Volume(label_map, grid), [Volume(image, grid)], {"a": [1], "b": [3], "c": [4]})
    for one in found:
        mask = label_map == one.label
        assert one.volume_ml == pytest.approx(mask.sum() / 1000)
        if mask.any():
            assert one.mean_intensity[0] == pytest.approx(image[mask].mean(dtype=float))


def test_the_table_has_a_row_per_case_and_structure(tmp_path):
    rows = as_rows(measure_structures(LABEL_MAP, [CT], {'liver, "left"': [7], "spleen": [9]}))
    write_measurements(tmp_path / "m.csv", {"p1": rows, "p2": rows})
    with (tmp_path / "m.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["case"], row["structure"], row["volume_ml"], row["mean_intensity"]) for row in table] == [
        ("p1", 'liver, "left"', "0.048", "45"),
        ("p1", "spleen", "0", ""),
        ("p2", 'liver, "left"', "0.048", "45"),
        ("p2", "spleen", "0", ""),
    ]


def test_several_channels_have_a_column_each(tmp_path):
    rows = as_rows(measure_structures(LABEL_MAP, [CT, CT], {"liver": [7], "spleen": [9]}))
    write_measurements(tmp_path / "m.csv", {"p1": rows})
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines == [
        "case,structure,label,volume_ml,mean_intensity_0,mean_intensity_1",
        "p1,liver,7,0.048,45,45",
        "p1,spleen,9,0,,",
    ]
