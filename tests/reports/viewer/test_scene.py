"""What a page shows: which voxels, where they lie, volumes, and what the reader is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.label_description import parse_labels
from medseg_brn.errors import DataError
from medseg_brn.reports.viewer.scene import (
    choose_factors,
    make_scene,
    suggests_hounsfield,
    tell_channel,
    thin,
)
from medseg_brn.volumes.volume import Grid, Volume

SHAPE = (4, 5, 6)
LPS = np.array([[-2, 0, 0, 90], [0, -1, 0, 126], [0, 0, 3, -72], [0, 0, 0, 1.0]])


def volume(array, affine=LPS) -> Volume:
    return Volume(array, Grid(array.shape, affine))


def numbered(shape=SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


def shown_values(scene) -> np.ndarray:
    return scene.image.offset + scene.image.step * scene.image.codes


@settings(deadline=None)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(0.5, 4)] * 3),
    st.integers(5, 120),
)
def test_every_shown_voxel_is_one_of_the_file_at_its_place(order, signs, spacing, limit):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(order)] * np.array(signs) * spacing
    affine[:3, 3] = (10, -20, 30)
    image = volume(numbered(), affine)
    scene = make_scene(image, voxel_limit=limit)
    assert scene.image.codes.size <= limit
    assert scene.grid.orientation == "RAS"
    for index in np.ndindex(scene.grid.shape):
        homogeneous = np.array([*index, 1])
        in_file = tuple(scene.page_to_file @ homogeneous)
        assert shown_values(scene)[index] == image.array[in_file]
        np.testing.assert_allclose(
            scene.grid.affine @ homogeneous, affine @ np.array([*in_file, 1]), atol=1e-9
        )


def test_volumes_by_hand_are_those_of_the_whole_label_map():
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :4] = 3
    labels[1, 2, 5] = 1
    described = parse_labels({"background": 0, "liver": 1, "spleen": 2}, "here")
    for limit in (120, 20):
        scene = make_scene(volume(numbered()), volume(labels), labels=described, voxel_limit=limit)
        found = scene.labels
        # A voxel has 2 · 1 · 3 mm³.
        assert [(one.name, one.value, one.voxels, one.volume_ml) for one in found.classes] == [
            ("liver", 1, 1, pytest.approx(0.006)),
            ("label 3", 3, 4, pytest.approx(0.024)),
        ]
        assert found.absent == ("spleen",)


def test_the_colour_of_a_class_does_not_hang_on_what_else_occurs():
    described = parse_labels({"background": 0, "liver": 1, "spleen": 2}, "here")
    both, one = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    both[0, 0, :2] = 1, 2
    one[0, 0, 0] = 2
    colours = [
        {
            shown.name: shown.colour
            for shown in make_scene(volume(one), volume(m), labels=described).labels.classes
        }
        for m in (both, one)
    ]
    assert colours[0]["spleen"] == colours[1]["spleen"] != colours[0]["liver"]


def test_a_model_s_own_colours_are_taken():
    described = parse_labels({"background": 0, "liver": 1, "spleen": 2}, "here")
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :2] = 2, 3
    own = ("#102030", "#405060")
    found = make_scene(volume(labels), volume(labels), labels=described, colours=own).labels.classes
    assert found[0].colour == "#405060"
    assert found[1].name == "label 3" and found[1].colour not in own


def test_regions_have_the_volume_of_their_classes():
    described = parse_labels(
        {"background": 0, "whole": [1, 2], "core": 2}, "here", regions_class_order=[1, 2]
    )
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :5] = 1, 1, 1, 2, 2
    found = make_scene(volume(numbered()), volume(labels), labels=described).labels
    assert [(one.name, one.voxels) for one in found.regions] == [("whole", 5), ("core", 2)]


def test_the_centre_of_a_class_lies_in_its_largest_axial_slice_and_in_the_class():
    labels = np.zeros((9, 9, 3), np.uint8)
    labels[0, 0, 0] = 1
    labels[1:8, 1:8, 2] = 1
    labels[3:6, 3:6, 2] = 0  # a ring, whose centroid is outside
    (found,) = make_scene(volume(labels, np.eye(4)), volume(labels, np.eye(4))).labels.classes
    assert found.centre[2] == 2
    assert labels[found.centre] == 1
    assert np.abs(np.array(found.centre[:2]) - 4).max() == 2


def test_a_label_map_with_other_axes_on_the_same_voxels_is_taken():
    labels = (numbered() % 3).astype(np.uint8)
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = SHAPE[0] - 1
    scene = make_scene(volume(numbered()), volume(labels[::-1], LPS @ turned))
    values = np.array([0, *(one.value for one in scene.labels.classes)])
    np.testing.assert_array_equal(values[scene.labels.codes], labels[::-1, ::-1])  # LPS to RAS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: Volume(v.array[:3], Grid((3, 5, 6), LPS)), r"shape \(4, 5, 6\) against \(3, 5, 6\)"),
        (
            lambda v: volume(v.array, LPS * [[1, 1, 2, 1]]),
            r"spacing \(2, 1, 3\) mm against \(2, 1, 6\) mm",
        ),
    ],
)
def test_a_label_map_off_the_grid_is_an_error_with_both_grids(change, told):
    image = volume(numbered())
    with pytest.raises(DataError, match=f"b.nii does not lie on the voxels of a.nii: .*{told}.*resample"):
        make_scene(image, change(image), image_place="a.nii", label_place="b.nii")


def test_a_label_map_that_is_none_is_an_error():
    half = np.full(SHAPE, 0.5)
    with pytest.raises(DataError, match=r"b\.nii has 120 voxels that are no integers, such as 0\.5"):
        make_scene(volume(numbered()), volume(half), label_place="b.nii")


def test_the_densest_axis_is_thinned_first():
    grid = Grid((512, 512, 100), np.diag([0.7, 0.7, 3, 1]))
    assert choose_factors(grid, 512 * 512 * 100) == (1, 1, 1)
    assert choose_factors(grid, 10**7) == (2, 2, 1)
    assert choose_factors(Grid((3, 3, 3), np.eye(4)), 1) == (3, 3, 3)


def test_thinning_by_hand():
    found = thin(volume(np.arange(5).reshape(5, 1, 1), np.eye(4)), (2, 1, 1))
    assert found.array.ravel().tolist() == [1, 3]
    assert found.affine[0].tolist() == [2, 0, 0, 1]


def test_hounsfield_units_are_recognized():
    random = np.random.default_rng(0)
    ct = np.where(random.random(SHAPE) < 0.5, -1000, 40)
    ct[0, 0, 0] = 300
    assert suggests_hounsfield(ct)
    assert not suggests_hounsfield(ct + 1024)
    assert not suggests_hounsfield(random.normal(0, 1, SHAPE))
    ct_scene, mri_scene = make_scene(volume(ct)), make_scene(volume(ct + 1024))
    assert (ct_scene.windows[ct_scene.start].width, ct_scene.windows[ct_scene.start].level) == (400, 40)
    assert mri_scene.start == 0
    assert make_scene(volume(ct + 1024), is_ct=True).start == 1


def test_other_images_start_with_their_percentiles():
    array = np.arange(101.0).reshape(101, 1, 1)
    window = make_scene(volume(array, np.eye(4))).windows[0]
    assert (window.level - window.width / 2, window.level + window.width / 2) == (1, 99)


def test_what_differs_from_the_file_is_told():
    array = numbered().astype(np.float32) + 0.25
    array[0, 0, 0] = np.nan
    turn = np.radians(10)
    tilted = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 0], [np.sin(turn), np.cos(turn), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    notes = make_scene(volume(array, tilted), voxel_limit=200, notes=("first",)).notes
    assert notes[0] == "first"
    assert [note for note in notes if "steps of 0.001801" in note]
    assert [note for note in notes if note.startswith("1 voxels shown are NaN")]
    assert [note for note in notes if "tilted by up to 10°" in note]
    assert [note for note in make_scene(volume(array), voxel_limit=20).notes if "one of" in note]
    assert make_scene(volume(np.full(SHAPE, 7))).notes == ("All voxels have the same value, 7.",)
    assert make_scene(volume(numbered())).notes == ()
    assert tell_channel(0, 1) == ()
    assert tell_channel(1, 4) == ("The scan has 4 channels, 0 to 3; this is channel 1.",)
