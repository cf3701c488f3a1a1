"""The volumes: one piece, normalized, reproducible, and with a neighbour that does not belong."""

import numpy as np
import torch
from scipy.ndimage import label

from medseg_brn.studies.adversarial.shapes import SIZE, draw_volumes


def test_volumes_are_what_they_say():
    volumes = draw_volumes(30, (0, 1))
    assert volumes.images.shape == volumes.classes.shape == (30, 1, SIZE, SIZE, SIZE)
    assert set(volumes.classes.unique().tolist()) == {0, 1}
    flat = volumes.images.flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(30))
    masks = volumes.classes[:, 0].numpy() > 0
    pieces = [label(mask)[1] for mask in masks]
    assert np.mean([count == 1 for count in pieces]) > 0.9
    sizes = masks.sum((1, 2, 3)) / SIZE**3
    assert sizes.min() > 0.01 and sizes.max() < 0.3 and sizes.std() > 0.01
    bright = [
        float(image[mask].mean()) for image, mask in zip(volumes.images[:, 0].numpy(), masks, strict=True)
    ]
    assert min(bright) > 0.5


def test_a_volume_is_the_same_in_a_small_cohort_and_a_large_one():
    small, large = draw_volumes(2, (5, 0)), draw_volumes(4, (5, 0))
    assert torch.equal(small.images, large.images[:2]) and torch.equal(small.classes, large.classes[:2])
    assert not torch.equal(small.images, draw_volumes(2, (5, 1)).images)
