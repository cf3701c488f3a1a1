from dataclasses import replace

import numpy as np
import pytest

from medseg_brn.cases.phantom_abdomen import (
    CLASS_NAMES,
    EXTENT_MM,
    KIDNEYS,
    LIVER,
    SPLEEN,
    Abdomen,
    sample_abdomen,
)

SPACING_MM = 5.0


@pytest.fixture(scope="module")
def positions() -> np.ndarray:
    axes = [np.arange(-extent / 2, extent / 2, SPACING_MM) for extent in EXTENT_MM]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


@pytest.fixture(scope="module", params=range(4))
def abdomen(request: pytest.FixtureRequest) -> Abdomen:
    return sample_abdomen(np.random.default_rng(request.param))


def test_volumes_are_those_of_people(abdomen: Abdomen, positions: np.ndarray) -> None:
    label_map = abdomen.draw(positions, SPACING_MM).label_map
    millilitres = np.bincount(label_map.ravel(), minlength=len(CLASS_NAMES)) * SPACING_MM**3 / 1000
    assert 700 < millilitres[LIVER] < 2200
    assert 60 < millilitres[SPLEEN] < 350
    assert 150 < millilitres[KIDNEYS] < 500


def test_organs_lie_on_their_sides(abdomen: Abdomen, positions: np.ndarray) -> None:
    """+x is the patient's right: the liver there, the spleen on the left, a kidney on each side."""
    label_map = abdomen.draw(positions, SPACING_MM).label_map
    x = positions[0]
    assert x[label_map == LIVER].mean() > 30
    assert x[label_map == SPLEEN].mean() < -60
    kidneys = x[label_map == KIDNEYS]
    assert 0.25 < (kidneys > 0).mean() < 0.75


@pytest.mark.parametrize(
    ("contrast", "liver", "spleen", "kidneys"), [(0.0, 58, 48, 34), (1.0, 108, 118, 140)]
)
def test_organs_have_their_hounsfield_units(
    abdomen: Abdomen, positions: np.ndarray, contrast: float, liver: float, spleen: float, kidneys: float
) -> None:
    canvas = replace(abdomen, contrast=contrast).draw(positions, SPACING_MM)
    medians = [np.median(canvas.image[canvas.label_map == k]) for k in (LIVER, SPLEEN, KIDNEYS)]
    # At full contrast a kidney's cortex (164) and its core (139) share the median.
    assert medians == pytest.approx([liver, spleen, kidneys], abs=20)


def test_air_fat_soft_tissue_and_bone_all_occur(abdomen: Abdomen, positions: np.ndarray) -> None:
    image = abdomen.draw(positions, SPACING_MM).image
    assert image.min() == -1000 and image.max() > 300
    for low, high, least in ((-1001, -990, 0.2), (-110, -90, 0.1), (20, 120, 0.1), (200, 600, 0.003)):
        assert ((image > low) & (image < high)).mean() > least


def test_the_air_around_and_the_table_are_background(abdomen: Abdomen, positions: np.ndarray) -> None:
    canvas = abdomen.draw(positions, SPACING_MM)
    assert not canvas.label_map[canvas.image < -500].any()
    assert not canvas.label_map[positions[1] < -125].any()
