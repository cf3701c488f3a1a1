"""Where patches are cut, against answers worked out by hand and properties of any volume."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.cache import PreparedCase, sample_foreground
from medseg_brn.patches.sampling import cut_box, draw_voxel, group_by_class, place_patch

IGNORED = 3


def make_case(folder: Path, label_map: np.ndarray, ignore_class: int | None = None) -> PreparedCase:
    """A prepared case of this label map."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "image": label_map[None].astype(np.float32),
        "label_map": label_map,
        "foreground": sample_foreground(label_map, ignore_class),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    paths = [folder / f"{name}.npy" for name in arrays]
    return PreparedCase(folder.name, *paths, spacing_mm=(1.0, 1.0, 1.0))


def make_label_map(**voxels: tuple[int, int, int]) -> np.ndarray:
    """(6, 5, 4) background but for single voxels: `c2=(0, 1, 2)` is a voxel of class 2."""
    label_map = np.zeros((6, 5, 4), np.uint8)
    for name, voxel in voxels.items():
        label_map[voxel] = int(name[1:])
    return label_map


def cut_patch(array: np.ndarray, start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    return cut_box(array, start, [first + length for first, length in zip(start, size, strict=True)])


def test_a_region_is_cut_where_asked_and_zero_outside():
    array = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1, 1)
    assert cut_box(array, (0, 0, 0), (4, 1, 1)).ravel().tolist() == [1, 2, 3, 4]
    assert cut_box(array, (-2, 0, 0), (2, 1, 1)).ravel().tolist() == [0, 0, 1, 2]
    assert cut_box(array, (3, 0, 0), (6, 1, 1)).ravel().tolist() == [4, 5, 0]
    assert cut_box(array, (-2, 0, 0), (7, 1, 1)).ravel().tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0]
    assert cut_box(array, (7, 0, 0), (9, 1, 1)).ravel().tolist() == [0, 0]
    assert cut_box(array, (-9, 0, 0), (-7, 1, 1)).ravel().tolist() == [0, 0]


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_patch_lies_inside_wherever_the_volume_is_long_enough(shape, size, seed):
    rng = np.random.default_rng(seed)
    wanted = rng.integers(np.asarray(shape))
    inside = cut_patch(np.ones((1, *shape)), place_patch(wanted, shape, size, rng), size)
    assert inside.sum() == np.prod(np.minimum(shape, size))


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), size=st.tuples(*[st.integers(1, 9)] * 3), data=st.data())
def test_a_patch_holds_the_voxel_it_was_placed_for(shape, size, data):
    wanted = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    marked = np.zeros((1, *shape))
    marked[(0, *wanted)] = 1
    start = place_patch(wanted, shape, size, np.random.default_rng(0))
    assert cut_patch(marked, start, size).sum() == 1


def test_a_volume_shorter_than_the_patch_lies_everywhere_in_it():
    rng = np.random.default_rng(0)
    array = np.ones((1, 2, 1, 1))
    first = [
        int(cut_patch(array, place_patch((0, 0, 0), (2, 1, 1), (5, 1, 1), rng), (5, 1, 1)).argmax())
        for _ in range(400)
    ]
    assert set(first) == {0, 1, 2, 3}
    assert all(70 < first.count(place) < 130 for place in range(4))


def test_the_classes_of_a_case_are_drawn_evenly(tmp_path):
    label_map = make_label_map(c2=(5, 4, 3))
    label_map[:3] = 1
    case = make_case(tmp_path / "a", label_map)
    rng = np.random.default_rng(0)
    drawn = [label_map[tuple(draw_voxel(case, True, None, rng))] for _ in range(400)]
    assert set(drawn) == {1, 2}
    assert 150 < drawn.count(2) < 250


def test_a_wanted_class_is_what_is_drawn(tmp_path):
    case = make_case(tmp_path / "a", make_label_map(c1=(0, 0, 0), c2=(5, 4, 3)))
    rng = np.random.default_rng(0)
    assert all(tuple(draw_voxel(case, True, 2, rng)) == (5, 4, 3) for _ in range(20))


def test_without_foreground_every_voxel_is_drawn(tmp_path):
    case = make_case(tmp_path / "a", np.zeros((3, 1, 2), np.uint8))
    rng = np.random.default_rng(0)
    assert len({tuple(draw_voxel(case, True, None, rng)) for _ in range(200)}) == 6


@pytest.mark.parametrize("wants_foreground", [False, True])
def test_no_patch_is_placed_on_a_voxel_to_be_ignored(tmp_path, wants_foreground):
    label_map = np.full((6, 5, 4), IGNORED, np.uint8)
    label_map[2] = 0
    label_map[2, 2, 2] = 1
    case = make_case(tmp_path / "a", label_map, ignore_class=IGNORED)
    rng = np.random.default_rng(0)
    drawn = {int(label_map[tuple(draw_voxel(case, wants_foreground, None, rng))]) for _ in range(100)}
    assert drawn == ({1} if wants_foreground else {0})


def test_where_no_background_is_annotated_patches_are_placed_on_foreground(tmp_path):
    label_map = np.full((6, 5, 4), IGNORED, np.uint8)
    label_map[2, 2, 2] = 1
    case = make_case(tmp_path / "a", label_map, ignore_class=IGNORED)
    rng = np.random.default_rng(0)
    drawn = {tuple(map(int, draw_voxel(case, False, None, rng, has_ignored=True))) for _ in range(50)}
    assert drawn == {(2, 2, 2)}


def test_cases_are_grouped_by_the_classes_they_have(tmp_path):
    both = make_case(tmp_path / "both", make_label_map(c1=(0, 0, 0), c2=(1, 1, 1)))
    one = make_case(tmp_path / "one", make_label_map(c1=(0, 0, 0)))
    none = make_case(tmp_path / "none", make_label_map())
    assert group_by_class([one, none, both]) == {1: [one, both], 2: [both]}
