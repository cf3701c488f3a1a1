"""Disparity, batchmates and cross-talk against results worked out by hand and by whole Jacobians."""

import math

import pytest
import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import DataError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.normalization import freeze_statistics
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.probes.dependence import backward_cross_talk, batchmate_dependence, train_eval_disparity

WITHOUT_LIMITS = {"r_max": 1e9, "d_max": 1e9, "schedule": (0, 0, 0)}


def make_images(count: int = 8, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randn(count, 1, 1, 1, 1, generator=generator)
    return torch.randn(count, 1, size, size, size, generator=generator) + offsets


def make_unet(norm: str, **norm_options: object) -> UNet3d:
    """Trained norms: statistics of some batches, away from what they will see."""
    torch.manual_seed(0)
    network = UNet3d(1, 3, (4, 8), norm=norm, norm_options=norm_options).train()
    with torch.no_grad():
        for batch in make_images().split(2):
            network(batch * 1.5 + 1)
    return network


def test_disparity_of_a_batch_norm_by_hand() -> None:
    # Running statistics (0, 1) leave the logits ±3 as they are; those of the batch make them ±1.
    network = nn.BatchNorm1d(1, affine=False, eps=1e-12).train()
    images = torch.tensor([[[-3.0, 3.0]], [[3.0, -3.0]], [[100.0, 100.0]]])  # the last fills no batch
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in (1, 3)]
    disparity = train_eval_disparity(network, images, 2)
    assert disparity.probability == pytest.approx(sigmoid[1] - sigmoid[0], rel=1e-6)
    assert disparity.dice is None


def test_dice_disparity_by_hand() -> None:
    # The batch's mean is 2: in training the logits are ±1 and the prediction is right; running statistics
    # leave 1 and 3, all foreground, of which half is true: Dice 2/3.
    network = nn.BatchNorm1d(1, affine=False, eps=1e-12)
    images = torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]])
    classes = (images > 2).long()
    assert train_eval_disparity(network, images, 2, classes).dice == pytest.approx(2 / 3 - 1)
    assert train_eval_disparity(network, images, 2, torch.zeros_like(classes)).dice is None


def test_dice_disparity_of_several_classes_leaves_out_what_does_not_occur() -> None:
    network = nn.GroupNorm(1, 4)
    classes = torch.tensor([[[0, 1, 1, 3]]])
    images = torch.nn.functional.one_hot(classes[:, 0], 4).movedim(-1, 1).float()
    disparity = train_eval_disparity(network, images, 1, classes)
    assert disparity.probability == 0 and disparity.dice == 0


def test_ignored_voxels_count_in_no_dice() -> None:
    # as by hand above, with the prediction of evaluation mode wrong where nobody has annotated
    network = nn.BatchNorm1d(1, affine=False, eps=1e-12)
    images = torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]])
    classes = torch.tensor([[[2, 1]], [[1, 2]]])
    targets = Targets(("background", "one"), ignore_class=2)
    disparity = train_eval_disparity(network, images, 2, classes, targets)
    assert disparity.dice == 0
    all_known = train_eval_disparity(network, images, 2, classes % 2, targets)
    assert all_known.dice == pytest.approx(2 / 3 - 1)


def test_dice_disparity_of_regions_by_hand() -> None:
    # Channels: whole (classes 1, 2) and core (2). The batch's mean is 2 in each: in training the logits are
    # ±1 and right; running statistics leave 1 and 3, so that every voxel is in both regions.
    network = nn.BatchNorm1d(2, affine=False, eps=1e-12)
    targets = Targets(
        ("background", "edema", "core"), (Region("whole", (1, 2), 1), Region("core", (2,), 2)), 3
    )
    images = torch.tensor([[[1.0, 1, 3, 3], [1, 1, 1, 3]], [[1, 1, 3, 3], [3, 3, 3, 3]]])
    images[:, 1] = torch.tensor([[1.0, 1, 1, 3], [3, 3, 1, 3]])
    classes = torch.tensor([[[0, 0, 1, 2]], [[3, 3, 1, 2]]])
    disparity = train_eval_disparity(network, images, 2, classes, targets)
    # of the 6 annotated voxels 4 are whole and 2 core; in evaluation all 6 are taken for both
    assert disparity.dice == pytest.approx(((2 * 4 / 10) + (2 * 2 / 8)) / 2 - 1)
    answers = [1, 3], [-1, 1]
    in_evaluation, in_training = (torch.tensor(x, dtype=torch.float32).sigmoid() for x in answers)
    assert disparity.probability == pytest.approx(float((in_evaluation - in_training).abs().mean()), abs=1e-6)


def test_stale_batch_norm_is_far_from_itself_and_renorm_without_limits_is_not() -> None:
    images = make_images()
    assert train_eval_disparity(make_unet("batch"), images, 1).probability > 0.02
    assert train_eval_disparity(make_unet("batch_renorm", **WITHOUT_LIMITS), images, 1).probability < 1e-5
    for norm in ("group", "instance", "none"):
        assert train_eval_disparity(make_unet(norm), images, 2).probability == 0


class MinusBatchMean(nn.Module):
    """f(x_i) = x_i - mean of the batch: its dependence on batchmates is known in closed form."""

    batch_dependent = True

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if self.training else x


def test_batchmate_dependence_of_a_mean_over_independent_items() -> None:
    # At batch size 2, f = (x - m)/2 with a mate m of the same distribution: Var_m f = σ²/4, Var f = σ²/2.
    images = torch.randn(4000, 1, 400, generator=torch.Generator().manual_seed(2))
    dependence = batchmate_dependence(MinusBatchMean(), images, 2, mates=16)
    assert dependence == pytest.approx(math.sqrt(1 / 2), rel=0.03)


def test_batchmates_matter_to_batch_norm_only() -> None:
    images = make_images()
    batch_norm = make_unet("batch")
    assert batchmate_dependence(batch_norm, images, 2) > 0.05
    assert batchmate_dependence(batch_norm, images, 1) == 0
    assert batchmate_dependence(make_unet("batch_renorm", **WITHOUT_LIMITS), images, 2) == 0
    assert batchmate_dependence(make_unet("batch_renorm", r_max=1, d_max=0), images, 2) > 0.05
    for norm in ("group", "instance", "none"):
        assert batchmate_dependence(make_unet(norm), images, 2) == 0


def test_a_network_in_bfloat16_with_stale_batch_norm_depends_on_batchmates() -> None:
    network = make_unet("batch")
    wide = batchmate_dependence(network, make_images(), 2)
    assert batchmate_dependence(network.bfloat16(), make_images(), 2) == pytest.approx(wide, rel=0.05)


def test_before_rounding_is_cut_off_renorm_has_only_rounding_and_item_norms_have_exactly_nothing() -> None:
    images = make_images().double()
    renorm = make_unet("batch_renorm", **WITHOUT_LIMITS).double()
    assert 0 < batchmate_dependence(renorm, images, 2, resolution=0) < 1e-12
    for norm in ("group", "instance", "none"):
        assert batchmate_dependence(make_unet(norm).double(), images, 2, resolution=0) == 0


def test_what_is_below_the_resolution_is_0() -> None:
    network, images = make_unet("batch"), make_images()
    for dtype in (torch.float32, torch.float64):
        ratio = batchmate_dependence(network.to(dtype), images, 2)
        units = ratio / torch.finfo(dtype).eps
        assert batchmate_dependence(network, images, 2, resolution=units * 0.999) == ratio > 0
        assert batchmate_dependence(network, images, 2, resolution=units * 1.001) == 0


@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "mabn"])
def test_frozen_norms_do_in_training_what_they_do_in_evaluation(norm: str) -> None:
    network, images = make_unet(norm), make_images()
    assert train_eval_disparity(network, images, 2).probability > 1e-3
    freeze_statistics(network)
    network.train()  # a mark is for good, whatever mode the layers are put into
    assert train_eval_disparity(network, images, 2).probability == 0
    assert batchmate_dependence(network, images, 2, resolution=0) == 0
    assert backward_cross_talk(network, images, 2) == 0


def test_batchmate_dependence_follows_the_seed() -> None:
    network, images = make_unet("batch"), make_images(12)
    values = [batchmate_dependence(network, images, 3, seed=seed) for seed in (5, 5, 6)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("kind", ["batch", "renorm"])
def test_cross_talk_is_the_ratio_of_the_jacobians_norms(kind: str) -> None:
    layer = nn.BatchNorm3d(1) if kind == "batch" else BatchRenorm3d(1, **WITHOUT_LIMITS)
    layer = layer.double()
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 1, 2, 2, 2, generator=generator, dtype=torch.float64)
    layer.train()(images)
    expected = []
    for order in ([0, 1], [1, 0]):
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], images[order])
        across, own = jacobian[..., 1, :, :, :, :].norm(), jacobian[..., 0, :, :, :, :].norm()
        expected.append(float(across / own))
    # Few projections are an estimate: average over many seeds.
    estimates = [backward_cross_talk(layer, images, 2, seed) for seed in range(200)]
    assert sum(estimates) / len(estimates) == pytest.approx(sum(expected) / 2, rel=0.05)


def test_renorm_leaks_backward_where_it_does_not_forward() -> None:
    images = make_images()
    renorm = make_unet("batch_renorm", **WITHOUT_LIMITS)
    assert batchmate_dependence(renorm, images, 2) == 0
    assert backward_cross_talk(renorm, images, 2) > 1e-3
    assert backward_cross_talk(make_unet("batch"), images, 2) > 1e-3
    assert backward_cross_talk(renorm, images, 1) == 0
    for norm in ("group", "instance", "none"):
        assert backward_cross_talk(make_unet(norm), images, 2) == 0


def test_cross_talk_leaves_parameters_without_gradient() -> None:
    network = make_unet("batch")
    backward_cross_talk(network, make_images(), 2)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_too_few_images_are_refused() -> None:
    network, images = nn.BatchNorm3d(1), make_images(2)
    with pytest.raises(DataError, match="2 images do not fill one batch of 3"):
        train_eval_disparity(network, images, 3)
    with pytest.raises(DataError, match="2 images do not fill one batch of 4"):
        backward_cross_talk(network, images, 4)
    with pytest.raises(DataError, match="4 sets of batchmates from 2 images at batch size 2"):
        batchmate_dependence(network, images, 2)
    with pytest.raises(DataError, match="1 sets of batchmates"):
        batchmate_dependence(network, make_images(), 2, mates=1)
