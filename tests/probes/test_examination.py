"""`probe` measures any network, changes nothing in it, and answers the same for a seed."""

import copy
import math

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import DataError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.mabn import MABN3d
from medseg_brn.networks.normalization import freeze_statistics
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.probes.examination import NETWORK_METRICS, NOISE_METRICS, STATISTICS_METRICS, probe

ALL_METRICS = {*NOISE_METRICS, *STATISTICS_METRICS, *NETWORK_METRICS}
CLIPPING = {"clip_rate_r", "clip_rate_d", "clipped_mass_r", "clipped_mass_d"}
OF_BATCH_STATISTICS = {"estimation_shift_mean", "estimation_shift_var", "worker_divergence"} | CLIPPING
WITHOUT_LIMITS = {"r_max": 1e9, "d_max": 1e9, "schedule": (0, 0, 0)}


def make_dataset(count: int = 16, size: int = 8, dimensions: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randn(count, *[1] * (dimensions + 1), generator=generator)
    images = torch.randn(count, 1, *[size] * dimensions, generator=generator) + offsets
    return TensorDataset(images, (images > 0.5).long() + (images > 1.5).long())


def make_loader(batch_size: int = 2, **options: int) -> DataLoader:
    return DataLoader(make_dataset(**options), batch_size)


def make_unet(norm: str, **norm_options: object) -> UNet3d:
    torch.manual_seed(0)
    network = UNet3d(1, 3, (4, 8), norm=norm, norm_options=norm_options).train()
    with torch.no_grad():
        for images, _ in make_loader():
            network(images * 1.5 + 1)
    return network


def missing(network_results: dict[str, float | None]) -> set[str]:
    return {name for name, value in network_results.items() if value is None}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("batch_renorm", set()),
        ("mabn", CLIPPING | {"estimation_shift_mean"}),
        ("batch", CLIPPING),
        ("group", OF_BATCH_STATISTICS),
        ("none", OF_BATCH_STATISTICS | set(NOISE_METRICS)),
    ],
)
def test_every_norm_is_measured_and_left_as_it_is(norm: str, expected: set[str]) -> None:
    network = make_unet(norm)
    network.head.train(False)
    state, modes = copy.deepcopy(network.state_dict()), [part.training for part in network.modules()]
    images, classes = make_dataset().tensors
    randomness = torch.get_rng_state()
    examination = probe(network, zip(images.split(2), classes.split(2), strict=True))
    now = network.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    assert [part.training for part in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), randomness)
    assert set(examination.network) == ALL_METRICS
    assert missing(examination.network) - {"gradient_noise_scale"} == expected
    if norm == "none":
        assert examination.layers == {}
        return
    for found in examination.layers.values():
        assert set(found) == {*NOISE_METRICS, *STATISTICS_METRICS} - expected
        assert all(math.isfinite(value) for value in found.values())


def test_what_only_batch_statistics_do() -> None:
    group, batch = (probe(make_unet(norm), make_loader()).network for norm in ("group", "batch"))
    for name in ("train_eval_disparity", "dice_disparity", "batchmate_dependence", "backward_cross_talk"):
        assert group[name] == 0 and batch[name] != 0
    assert group["gradient_fidelity"] == pytest.approx(1) and batch["gradient_fidelity"] < 0.999


def test_a_two_dimensional_monai_network() -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, 3, channels=(4, 8), strides=(2,), norm="batch", dropout=0.3)
    state = copy.deepcopy(network.state_dict())
    examination = probe(network, make_loader(dimensions=2, size=16))
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert network.training and missing(examination.network) - {"gradient_noise_scale"} == CLIPPING
    assert list(examination.layers) == [
        name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)
    ]


def test_one_channel_of_logits_has_a_loss_of_its_own() -> None:
    dataset = make_dataset()
    loader = DataLoader(TensorDataset(dataset.tensors[0], (dataset.tensors[1] > 0).long()), 2)
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 1))
    results = probe(network, loader).network
    assert results["gradient_fidelity"] is not None and results["dice_disparity"] is not None


def test_the_same_seed_gives_the_same_numbers() -> None:
    network, loader = make_unet("batch_renorm"), make_loader()
    first, second, other = (probe(network, loader, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first.network["backward_cross_talk"] != other.network["backward_cross_talk"]


def test_renorm_without_limits_trains_the_function_it_evaluates_and_stale_batch_norm_does_not() -> None:
    loader = make_loader(batch_size=1)
    renorm = probe(make_unet("batch_renorm", **WITHOUT_LIMITS), loader).network
    assert renorm["train_eval_disparity"] <= 1e-5
    assert all(renorm[name] == 0 for name in CLIPPING)
    assert renorm["batchmate_dependence"] == renorm["backward_cross_talk"] == 0  # alone in its batch
    assert probe(make_unet("batch"), loader).network["train_eval_disparity"] > 0.02


def test_tight_limits_clip_everything() -> None:
    results = probe(make_unet("batch_renorm", r_max=1, d_max=0, schedule=(0, 0, 0)), make_loader()).network
    assert results["clip_rate_r"] == results["clip_rate_d"] == 1
    assert results["clipped_mass_r"] > 0 and results["clipped_mass_d"] > 0


def test_clipping_is_what_the_layers_observer_tells() -> None:
    torch.manual_seed(0)
    layer = BatchRenorm3d(4, momentum=0.0, r_max=1.2, d_max=0.2, schedule=(0, 0, 0))
    layer.train()(torch.randn(2, 4, 8, 8, 8))  # statistics (0, 1), roughly
    images = torch.randn(16, 4, 8, 8, 8) + torch.randn(16, 1, 1, 1, 1) * 0.3
    images *= torch.rand(16, 4, 1, 1, 1) + 0.5
    examination = probe(layer, [images], batch_size=8)  # 8 measured patches are one batch
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    seen = []
    layer.observer = seen.append
    layer(images[order[8:]])
    assert examination.network["clip_rate_r"] == pytest.approx(float(seen[0].r_clipped))
    assert examination.network["clip_rate_d"] == pytest.approx(float(seen[0].d_clipped))


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, BatchRenorm3d, MABN3d])
def test_exact_statistics_have_no_estimation_shift(norm: type[nn.Module]) -> None:
    """Features of mean 3 and variance 4, so E[x²] is 13: MABN keeps the latter, the others the former."""
    layer, uncentred = norm(2), norm is MABN3d
    values = torch.tensor([1.0, 5.0]).repeat(16, 2, 2, 2, 1)
    layer.running_mean.fill_(0.0 if uncentred else 3.0)
    layer.running_var.fill_(13.0 if uncentred else 4.0)
    layer.num_batches_tracked.fill_(1)
    (found,) = probe(layer, [values], batch_size=4).layers.values()
    assert found["estimation_shift_var"] == pytest.approx(0, abs=1e-6)
    assert found.get("estimation_shift_mean") == (None if uncentred else pytest.approx(0, abs=1e-6))
    layer.running_var.mul_(2)
    (found,) = probe(layer, [values], batch_size=4).layers.values()
    assert found["estimation_shift_var"] == pytest.approx(1)


def test_first_order_noise_is_the_formula_in_numbers() -> None:
    # Items ±1 and ±3 in equal parts: σ² = 5, an item's mean square is 1 or 9, of sd 4. Batches of 4 items.
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    items = torch.stack([signs, 3 * signs] * 1000).unsqueeze(1)
    results = probe(nn.BatchNorm1d(1), [items], batch_size=4, patches=2000).network
    assert results["variance_noise_first_order"] == pytest.approx(4 / math.sqrt(4) / 5, rel=0.02)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "mabn"])
def test_frozen_norms_are_examined_as_frozen(norm: str) -> None:
    network = make_unet(norm)
    before = probe(network, make_loader())
    freeze_statistics(network)
    after = probe(network, make_loader())
    still = ("train_eval_disparity", "dice_disparity", "batchmate_dependence", "backward_cross_talk")
    assert all(after.network[name] == 0 != before.network[name] for name in still)
    assert after.network["gradient_fidelity"] == pytest.approx(1, abs=1e-9)
    assert list(after.layers) == list(before.layers)
    lost = {name for found in before.layers.values() for name in found}
    lost -= {name for found in after.layers.values() for name in found}
    assert lost == {"worker_divergence"} | (CLIPPING if norm == "batch_renorm" else set())


def test_a_frozen_network_is_measured_though_a_batch_leaves_one_value_per_channel() -> None:
    network = UNet3d(1, 3, (4, 8), norm="batch", strides=[(1, 1, 1), (8, 8, 8)])
    freeze_statistics(network)
    assert probe(network, make_loader(batch_size=1)).network["train_eval_disparity"] == 0


def test_estimation_shift_vanishes_when_recalibrated_on_the_same_batches() -> None:
    network, images = make_unet("batch"), make_dataset().tensors[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    stale = probe(network, [images], batch_size=4).network
    recalibrate(network, images[order[8:]].split(4))
    fresh = probe(network, [images], batch_size=4).network
    assert stale["estimation_shift_mean"] > 0.1 and stale["estimation_shift_var"] > 0.1
    assert fresh["estimation_shift_mean"] < 1e-5 and fresh["estimation_shift_var"] < 1e-5


def test_noise_is_predicted_and_measured_for_items_of_known_offsets() -> None:
    # Item means N(0, 1), values N(mean, 1): τ² = σ_w² = 1; 512 voxels. Var(μ_B) = 1/4 + 1/2048 at B = 4.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(800, 4, 8, 8, 8, generator=generator) + torch.randn(
        800, 4, 1, 1, 1, generator=generator
    )
    results = probe(nn.BatchNorm3d(4), [images], batch_size=4, patches=800).network
    expected = math.sqrt((1 / 4 + 1 / 2048) / 2)
    assert results["mean_noise_theory"] == pytest.approx(expected, rel=0.1)
    assert results["mean_noise_measured"] == pytest.approx(expected, rel=0.1)
    assert results["mean_noise_in_training"] == pytest.approx(expected, rel=0.15)
    assert results["variance_noise_theory"] == pytest.approx(results["variance_noise_measured"], rel=0.15)
    assert results["intraclass_correlation"] == pytest.approx(0.5, abs=0.05)


def test_loaders_of_dictionaries_and_of_images_alone() -> None:
    network, dataset = make_unet("batch"), make_dataset()
    images, classes = dataset.tensors
    pairs = probe(network, DataLoader(dataset, 2))
    dictionaries = [{"image": images[i : i + 2], "label": classes[i : i + 2, 0]} for i in range(0, 16, 2)]
    assert probe(network, dictionaries) == pairs
    alone = probe(network, images.split(2))
    assert missing(alone.network) - CLIPPING == {
        "dice_disparity",
        "gradient_fidelity",
        "gradient_noise_scale",
    }
    assert alone.layers == pairs.layers


def test_monai_batches_of_meta_tensors() -> None:
    images, classes = make_dataset().tensors
    batch = {"image": MetaTensor(images), "label": MetaTensor(classes.float())}
    network = make_unet("group")
    assert probe(network, [batch], batch_size=2) == probe(network, [(images, classes)], batch_size=2)


def test_frozen_parameters_leave_the_gradient_metrics_out() -> None:
    results = probe(make_unet("group").requires_grad_(False), make_loader()).network
    assert results["gradient_fidelity"] is None and results["backward_cross_talk"] == 0


def test_one_value_per_channel_is_no_reason_to_fail() -> None:
    network = UNet3d(1, 3, (4, 8), norm="batch_renorm", strides=[(1, 1, 1), (8, 8, 8)])
    results = probe(network, make_loader(batch_size=1)).network
    assert results["train_eval_disparity"] is None and results["clip_rate_r"] is None
    assert results["mean_noise_measured"] is not None
    assert probe(network, make_loader(batch_size=2)).network["train_eval_disparity"] is not None


def test_only_as_many_patches_as_asked_for_are_taken() -> None:
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield torch.randn(2, 1, 4, 4, 4)

    parts: list[str] = []
    probe(nn.BatchNorm3d(1), endless(), patches=7, progress=parts.append)
    assert len(taken) == 4 and parts[0] == "noise and statistics of the layers"


def test_as_many_patches_as_a_batch_has_are_enough() -> None:
    results = probe(make_unet("batch"), make_loader(count=2)).network
    assert results["train_eval_disparity"] is not None and results["estimation_shift_mean"] is not None
    assert results["batchmate_dependence"] is None and results["variance_noise_measured"] is None


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"0 batches, 0 with classes, of item shapes \[\]"),
        ([torch.zeros(1, 1, 4), torch.zeros(1, 1, 5)], r"item shapes \[\(1, 4\), \(1, 5\)\]"),
        ([(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)), torch.zeros(1, 1, 4)], "2 batches, 1 with classes"),
    ],
)
def test_pools_that_cannot_be_are_refused(batches: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        probe(nn.BatchNorm1d(1), batches)


REGIONS = (Region("whole", (1, 2), 1), Region("core", (2,), 2), Region("edge", (1,), 1))


@pytest.mark.parametrize("targets", [Targets(("b", "1", "2"), REGIONS), Targets(("b", "1", "2"), (), 3)])
def test_regions_and_ignored_voxels_need_the_loss_that_was_trained_with(targets: Targets) -> None:
    with pytest.raises(DataError, match="knows no regions and no ignored voxels; give the loss"):
        probe(make_unet("batch"), make_loader(), targets=targets)

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        return logits.square().mean()

    results = probe(make_unet("batch"), make_loader(), targets=targets, loss=loss).network
    plain = probe(make_unet("batch"), make_loader(), loss=loss).network
    assert all(results[name] is not None for name in ("train_eval_disparity", "dice_disparity"))
    differing = {name for name in results if results[name] != plain[name]}
    assert differing == ({"train_eval_disparity", "dice_disparity"} if targets.regions else set())


def test_a_batch_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(DataError, match="16 patches do not fill a batch of 17"):
        probe(make_unet("batch"), make_loader(), batch_size=17)
