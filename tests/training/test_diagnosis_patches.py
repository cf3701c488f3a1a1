"""Patches as they are counted: classes by hand, losses by the formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.diagnosis.patches import PatchLog, compute_patch_losses, count_classes

NAMES = ("background", "liver", "tumour")


def make_classes(seed: int, largest: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, largest + 1, (2, 1, 4, 4, 6), generator=generator)


def make_logits(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 4, 4, 6, generator=torch.Generator().manual_seed(1))


@given(seed=st.integers(0, 100), largest=st.integers(0, 4))
def test_every_voxel_is_counted_once_in_its_class(seed, largest):
    classes = make_classes(seed, largest)
    counts = count_classes(classes).numpy()
    assert counts.sum(axis=1).tolist() == [4 * 4 * 6] * 2
    for patch, row in zip(classes.numpy(), counts, strict=True):
        assert [np.count_nonzero(patch == index) for index in range(len(row))] == row.tolist()


def test_the_loss_of_a_patch_is_its_mean_cross_entropy_over_every_second_voxel():
    classes, logits = make_classes(0, 2), make_logits(3)
    expected = []
    for patch, scores in zip(classes.numpy(), logits.double().numpy(), strict=True):
        losses = []
        for x in range(0, 4, 2):
            for y in range(0, 4, 2):
                for z in range(0, 6, 2):
                    voxel = scores[:, x, y, z]
                    losses.append(np.log(np.exp(voxel).sum()) - voxel[patch[0, x, y, z]])
        expected.append(np.mean(losses))
    np.testing.assert_allclose(compute_patch_losses(logits, classes, Targets(NAMES)), expected, rtol=1e-5)


def test_ignored_voxels_do_not_count():
    targets = Targets(NAMES[:2], ignore_class=2)
    classes, logits = make_classes(0, 1), make_logits(2)
    plain = compute_patch_losses(logits[..., :4], classes[..., :4], targets)
    classes[..., 4:] = 2
    torch.testing.assert_close(compute_patch_losses(logits, classes, targets), plain)
    classes[0] = 2
    losses = compute_patch_losses(logits, classes, targets).tolist()
    assert math.isnan(losses[0])
    assert losses[1] == pytest.approx(float(plain[1]))


def test_regions_have_a_binary_cross_entropy_each():
    targets = Targets(NAMES, regions=(Region("organ", (1, 2), 1), Region("tumour", (2,), 2)))
    classes = torch.tensor([0, 1, 2]).repeat_interleave(8).view(3, 1, 2, 2, 2)
    logits = torch.tensor([2.0, -3.0]).view(1, 2, 1, 1, 1).expand(3, 2, 2, 2, 2)
    inside = [math.log(1 + math.exp(-score)) for score in (2.0, -3.0)]  # -ln σ(s)
    outside = [math.log(1 + math.exp(score)) for score in (2.0, -3.0)]  # -ln (1 - σ(s))
    expected = [
        (outside[0] + outside[1]) / 2,
        (inside[0] + outside[1]) / 2,
        (inside[0] + inside[1]) / 2,
    ]
    assert compute_patch_losses(logits, classes, targets).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_log_holds_the_passes_of_a_step_and_begins_anew():
    log = PatchLog(Targets(NAMES))
    for cases in (["a", "b"], ["c", "a"]):
        label = torch.zeros(2, 1, 4, 4, 6, dtype=torch.int64)
        label[1, 0, 0, 0, :5] = 2
        batch = PatchBatch(image=torch.zeros(2, 1, 4, 4, 6), label=label, cases=cases)
        log.take_in(batch, torch.zeros(2, 3, 4, 4, 6), label)
    records = log.read(9)
    assert [(record.step, record.case, dict(record.voxels)) for record in records] == [
        (9, "a", {0: 96}),
        (9, "b", {0: 91, 2: 5}),
        (9, "c", {0: 96}),
        (9, "a", {0: 91, 2: 5}),
    ]
    assert [record.loss for record in records] == pytest.approx([math.log(3)] * 4)
    assert log.read(10) == []
