"""The scans of one repetition."""

import numpy as np
import torch

from medseg_brn.studies.sites.anatomies import SHAPE, Heads, OwnScans
from medseg_brn.studies.sites.cohort import NEEDED, SEEN, UNSEEN, draw_cohort


def make_numbered(count: int = NEEDED) -> OwnScans:
    """Anatomies that their masks tell apart: number k has the k-th voxel of a row."""
    masks = np.zeros((count, count, 2, 2), bool)
    masks[np.arange(count), np.arange(count), 0, 0] = True
    return OwnScans("numbered", np.random.default_rng(0).random(masks.shape, np.float32), masks)


def test_every_anatomy_is_scanned_once_and_by_one_site():
    cohort = draw_cohort(make_numbered(), 0, 0)
    parts = (cohort.training, cohort.held_out, cohort.unlabelled, cohort.tried)
    numbers = torch.cat([part.masks[:, :, 0, :, 0, 0].flatten(0, 1).argmax(1) for part in parts])
    assert sorted(numbers.tolist()) == list(range(NEEDED))
    assert [part.sites for part in parts] == [SEEN, SEEN, UNSEEN, UNSEEN]
    assert [part.images.shape[:3] for part in parts] == [(4, 6, 1), (4, 4, 1), (4, 4, 1), (4, 4, 1)]
    assert len(cohort.scanners) == len(cohort.example) == 8


def test_a_repetition_is_drawn_the_same_again_and_others_differ():
    one, again, other = (draw_cohort(make_numbered(), number, 3) for number in (1, 1, 2))
    assert one.scanners == again.scanners != other.scanners
    assert torch.equal(one.tried.images, again.tried.images)
    assert draw_cohort(make_numbered(), 1, 4).scanners != one.scanners


def test_scans_of_a_site_have_its_offset():
    cohort = draw_cohort(make_numbered(), 0, 0)
    for number, site in enumerate(SEEN):
        scanner = next(one for one in cohort.scanners if one.name == site)
        centre = float(cohort.training.images[number].mean())
        assert abs(centre - scanner.offset - 0.5 * scanner.gain) < 0.25 * scanner.gain


def test_harmonized_scans_are_z_scores_of_each_scan():
    scans = draw_cohort(make_numbered(), 0, 0).held_out
    scored = scans.harmonize()
    flat = scored.images.flatten(2)
    torch.testing.assert_close(flat.mean(2), torch.zeros(4, 4), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.std(2, correction=0), torch.ones(4, 4), rtol=0, atol=1e-4)
    assert scored.masks is scans.masks and scored.sites == scans.sites


def test_heads_fill_the_grid_and_have_a_brain():
    images, masks = Heads().draw(2, np.random.default_rng(0))
    assert images.shape == masks.shape == (2, *SHAPE)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() < 1.3
    assert 0.1 < masks.mean() < 0.4
    assert not np.array_equal(images[0], images[1])
