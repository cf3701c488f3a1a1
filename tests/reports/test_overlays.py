"""Overlays look at the patient from the right side."""

import base64
import io
import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_brn.errors import DataError
from medseg_brn.reports.overlays import draw_overlay
from medseg_brn.volumes.volume import Grid, Volume

SHAPE = (20, 30, 24)


def volume(array: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(array, Grid(array.shape, np.eye(4) if affine is None else affine))


def scan() -> tuple[np.ndarray, np.ndarray]:
    """An image that is bright where the patient's right, front and head are, and a block in its middle."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[8:12, 12:18, 10:14] = 1
    return ((x > 14) * 40 + (y > 22) * 20 + (z > 18) * 10).astype(np.float32), label_map


def pixels_of(markup: str) -> np.ndarray:
    data = re.search(r"base64,([^\"]+)", markup)[1]
    return imread(io.BytesIO(base64.b64decode(data)))[..., :3].mean(-1)


def panels_of(picture: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
    edges = np.cumsum([0, *widths]) / sum(widths) * picture.shape[1]
    return [picture[:, int(a) + 8 : int(b) - 8] for a, b in pairwise(edges)]


def test_right_is_left_and_front_and_head_are_up():
    image, label_map = scan()
    picture = pixels_of(draw_overlay(*(volume(each) for each in (image, label_map, label_map)), "x"))
    axial, coronal, sagittal = panels_of(picture, (20, 20, 30))
    height, width = axial.shape
    assert axial[:, : width // 5].mean() > 2 * axial[:, -width // 5 :].mean()
    assert coronal[:, : width // 5].mean() > 2 * coronal[:, -width // 5 :].mean()
    assert axial[height // 10 : height // 6].mean() > axial[-height // 6 : -height // 10].mean() + 0.1
    width = sagittal.shape[1]
    assert sagittal[height // 3 : -height // 3, : width // 6].mean() > 0.2
    assert sagittal[height // 3 : -height // 3, -width // 6 :].mean() < 0.1


def test_orientation_of_the_file_makes_no_difference():
    image, label_map = scan()
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
    flipped[:2, 3] = (SHAPE[0] - 1, SHAPE[1] - 1)
    straight = draw_overlay(*(volume(each) for each in (image, label_map, label_map)), "x")
    turned = draw_overlay(*(volume(each[::-1, ::-1], flipped) for each in (image, label_map, label_map)), "x")
    assert straight == turned


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 1, 4), (3, 1, 1)])
def test_pictures_have_the_proportions_of_the_patient(spacing_mm):
    image, label_map = scan()
    affine = np.diag([*spacing_mm, 1.0])
    picture = pixels_of(draw_overlay(*(volume(each, affine) for each in (image, label_map, label_map)), "x"))
    x, y, z = np.multiply(SHAPE, spacing_mm)
    shape = max((x + x + y) / max(y, z), 9 / 5)  # a taller picture stands on a canvas of 9 to 5
    assert picture.shape[1] / picture.shape[0] == pytest.approx(shape, rel=0.03)


@pytest.mark.parametrize("filled", [(), ("prediction",), ("reference",)])
def test_empty_maps_are_drawn(filled):
    image, label_map = scan()
    maps = [volume(label_map if name in filled else 0 * label_map) for name in ("reference", "prediction")]
    assert 'alt="nothing found"' in draw_overlay(volume(image), *maps, "nothing found")


def test_constant_image_is_drawn():
    image, label_map = scan()
    draw_overlay(*(volume(each) for each in (0 * image, label_map, label_map)), "x")


def test_other_grids_are_refused():
    image, label_map = scan()
    with pytest.raises(DataError, match=r"prediction.*\(20, 30, 24\) against \(20, 30, 23\)"):
        draw_overlay(volume(image), volume(label_map), volume(label_map[..., 1:]), "x")


def test_window_fits_what_is_segmented_not_air_and_bone():
    """An organ of 90 to 110 HU among air and bone is grey, neither black nor white."""
    image, label_map = scan()
    image[:] = np.where(np.indices(SHAPE).sum(0) % 2, -1000, 1500)
    image[label_map == 1] = np.linspace(90, 110, int(label_map.sum()))
    picture = pixels_of(draw_overlay(*(volume(each) for each in (image, label_map, 0 * label_map)), "x"))
    axial = panels_of(picture, (20, 20, 30))[0]
    organ = axial[axial.shape[0] // 2, axial.shape[1] // 2]
    assert 0.25 < organ < 0.75


def test_each_file_may_have_its_own_orientation():
    """An LPS scan, as DICOM has it, and an LAS label map of the same voxels, with axes swapped too."""
    image, label_map = scan()
    lps, las = np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([-1.0, 1.0, 1.0, 1.0])
    lps[:2, 3] = (SHAPE[0] - 1, SHAPE[1] - 1)
    las[0, 3] = SHAPE[0] - 1
    turned = (
        volume(image[::-1, ::-1], lps),
        volume(label_map[::-1], las),
        volume(label_map[::-1].swapaxes(0, 1), las[:, [1, 0, 2, 3]]),
    )
    straight = (volume(image), volume(label_map), volume(label_map))
    assert draw_overlay(*turned, "x") == draw_overlay(*straight, "x")


def test_slices_go_through_the_largest_difference_where_it_is_asked_for():
    image, reference = scan()
    prediction = reference.copy()
    prediction[9:11, 14:16, 20] = 1  # far above the reference, which axial slices 10 to 13 cut
    image[..., 20] = 1000
    volumes = [volume(each) for each in (image, reference, prediction)]
    axial = [
        panels_of(pixels_of(draw_overlay(*volumes, "x", through=through)), (20, 20, 30))[0]
        for through in ("reference", "difference")
    ]
    assert axial[1].mean() > axial[0].mean() + 0.3
    same = [volume(each) for each in (image, reference, reference)]
    assert draw_overlay(*same, "x", through="difference") == draw_overlay(*same, "x")


@pytest.mark.parametrize("through", ["reference", "difference"])
def test_ignored_voxels_of_the_reference_are_not_drawn(through):
    image, reference = scan()
    prediction = reference.copy()
    sparse = reference.copy()
    sparse[..., 20:] = 9
    prediction[9:11, 14:16, 22] = 1
    expected = draw_overlay(*(volume(each) for each in (image, reference, prediction)), "x")
    found = draw_overlay(
        *(volume(each) for each in (image, sparse, prediction)), "x", through=through, ignore_value=9
    )
    assert found == expected
