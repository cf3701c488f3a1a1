from dataclasses import replace

import numpy as np
import pytest

from medseg_brn.cases.phantom_head import (
    BRAIN,
    EXTENT_MM,
    LESION,
    VENTRICLES,
    Lesion,
    sample_head,
    ventricle_depth,
)


def positions(spacing_mm: float, shift_mm: float = 0.0) -> np.ndarray:
    axes = [np.arange(-extent / 2, extent / 2, spacing_mm) + shift_mm for extent in EXTENT_MM]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def volumes_ml(label_map: np.ndarray, spacing_mm: float) -> np.ndarray:
    return np.bincount(label_map.ravel(), minlength=4) * spacing_mm**3 / 1000


@pytest.mark.parametrize("seed", range(4))
def test_volumes_are_those_of_people(seed: int) -> None:
    canvas = sample_head(np.random.default_rng(seed)).draw(positions(4.0), 4.0)
    millilitres = volumes_ml(canvas.label_map, 4.0)
    assert 800 < millilitres[BRAIN] < 1600
    assert 10 < millilitres[VENTRICLES] < 120
    assert millilitres[LESION] < 100


def test_a_head_is_the_same_on_a_fine_and_on_a_coarse_grid() -> None:
    head = sample_head(np.random.default_rng(1))
    coarse = volumes_ml(head.draw(positions(3.0), 3.0).label_map, 3.0)
    fine = volumes_ml(head.draw(positions(2.0, 0.7), 2.0).label_map, 2.0)
    assert coarse[[BRAIN, VENTRICLES]] == pytest.approx(fine[[BRAIN, VENTRICLES]], rel=0.04)


def test_a_lesion_is_drawn_where_it_is_said_to_be() -> None:
    head = replace(sample_head(np.random.default_rng(1)), lesions=(Lesion((30.0, 10.0, 45.0), 12.0, 0.4),))
    grid = positions(3.0)
    canvas = head.draw(grid, 3.0)
    centre = head.deformation(grid)[:, canvas.label_map == LESION].mean(axis=1)
    assert centre == pytest.approx([30, 10, 45], abs=4)


def test_from_0_to_4_lesions_occur_and_they_spare_the_ventricles() -> None:
    heads = [sample_head(np.random.default_rng(seed)) for seed in range(60)]
    assert {len(head.lesions) for head in heads} == {0, 1, 2, 3, 4}
    for head in heads:
        for lesion in head.lesions:
            centre = np.array(lesion.centre, np.float32)[:, None]
            assert ventricle_depth(centre, head.ventricle_scale).item() < 0


def test_no_threshold_finds_a_class() -> None:
    """The best interval of brightness, known beforehand, still misses half of ventricles and lesions."""
    head = replace(sample_head(np.random.default_rng(1)), lesions=(Lesion((30.0, 10.0, 45.0), 12.0, 0.45),))
    canvas = head.draw(positions(3.0), 3.0)
    for class_index in (VENTRICLES, LESION):
        reference = canvas.label_map == class_index
        low, high = np.percentile(canvas.image[reference], (10, 90))
        found = (canvas.image >= low) & (canvas.image <= high)
        dice = 2 * (found & reference).sum() / (found.sum() + reference.sum())
        assert dice < 0.5
