"""Scores of a volume: exact for every plan, averaged over mirrorings and members, else from windows."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional

from medseg_brn.errors import ConfigError
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.inference.predictor import Predictor
from medseg_brn.inference.tiles import round_up
from medseg_brn.networks.folding import fold
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.volumes.scratch import Scratch

CPU = torch.device("cpu")
NETWORKS = {
    "four levels": {"channels": (4, 6, 8, 10), "encoder_blocks": 2},
    "six levels": {"channels": (4, 4, 6, 6, 8, 8)},
    "one level": {"channels": (4,)},
    "anisotropic": {
        "channels": (4, 6, 8),
        "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)],
        "kernels": [(3, 3, 1), (3, 3, 3), (5, 3, 3)],
    },
    "residual": {"channels": (4, 6, 8), "encoder": "residual", "encoder_blocks": (1, 2, 1)},
    "standardized weights": {"channels": (4, 6, 8), "weight_standardization": True, "decoder_blocks": 2},
}
SHARES = (1, 0.6, 0.4, 0.3, 0.2, 0.15)  # of the memory that the most generous plan takes


def _network(name="four levels", seed=0, **options) -> UNet3d:
    """A network whose statistics are those of some data."""
    torch.manual_seed(seed)
    network = UNet3d(2, 3, **{"norm": "batch_renorm", **NETWORKS[name], **options})
    for _ in range(3):
        network(torch.randn(2, 2, 64, 64, 64))
    return network.eval()


def _predictor(network, dtype=torch.float32) -> Predictor:
    return Predictor(network, (32, 32, 32), CPU, dtype)


def _image(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


def _whole(network: UNet3d, image: np.ndarray) -> np.ndarray:
    """The folded network, called as it is on the volume in one piece, with zeros beyond its upper ends."""
    x, y, z = image.shape[1:]
    more = np.subtract(round_up((x, y, z), network.strides_total), (x, y, z)).tolist()
    padded = functional.pad(torch.from_numpy(image)[None], (0, more[2], 0, more[1], 0, more[0]))
    with torch.no_grad():
        return fold(network, tuple(padded.shape))(padded)[0, :, :x, :y, :z].softmax(0).numpy()


def _compute(predictors, images, **options) -> tuple[np.ndarray, str]:
    with Scratch() as scratch:
        scores = compute_scores(predictors, images, Options(**options), scratch)
        slabs = list(scores.slabs)
    return np.concatenate(slabs, axis=1), scores.plan


@pytest.mark.parametrize("shape", [(45, 33, 38), (32, 61, 23)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_gives_what_the_whole_volume_gives(name, shape):
    network, image = _network(name), _image(shape)
    predictor, expected = _predictor(network), _whole(network, image)
    most = predictor.plan(shape, 1e12).predicted_bytes
    found, plans = [], set()
    for share in SHARES:
        try:
            probabilities, plan = _compute([predictor], [image], budget_bytes=share * most)
        except ConfigError:  # less than the thriftiest plan needs
            continue
        found.append(probabilities)
        plans.add(plan)
    assert len(plans) >= 4
    for probabilities in found:
        assert abs(probabilities - expected).max() < 1e-5
        assert abs(probabilities - found[0]).max() < 1e-6


def test_the_plans_of_small_budgets_use_files_and_compute_twice():
    predictor = _predictor(_network("six levels"))
    plans = [predictor.plan((45, 33, 38), budget).describe() for budget in (5e6, 4e6, 2e6, 1.5e6)]
    assert any("on file" in plan for plan in plans)
    assert any("computed twice" in plan for plan in plans)


@pytest.mark.parametrize("name", ["four levels", "residual"])
def test_in_bf16_every_plan_gives_the_same_labels(name):
    predictor, image = _predictor(_network(name), torch.bfloat16), _image((45, 33, 38))
    found = [_compute([predictor], [image], budget_bytes=budget)[0] for budget in (1e9, 2e6, 1e6)]
    for probabilities in found[1:]:
        assert (probabilities.argmax(0) == found[0].argmax(0)).mean() >= 0.9999
    assert (found[0].argmax(0) == _whole(_network(name), image).argmax(0)).mean() > 0.98


def test_mirrored_passes_are_averaged():
    network, image = _network(), _image((21, 18, 26))
    mirrorings = [axes for count in range(3) for axes in combinations((0, 2), count)]
    expected = []
    for axes in mirrorings:
        over = [axis + 1 for axis in axes]
        expected.append(np.flip(_whole(network, np.flip(image, over).copy()), over))
    found, plan = _compute([_predictor(network)], [image], mirror_axes=(0, 2), budget_bytes=8e6)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-5)
    assert plan.endswith("4 passes averaged")


def test_members_are_averaged_each_on_its_own_image():
    networks, images = [_network(seed=0), _network(seed=1)], [_image((21, 18, 26)), _image((21, 18, 26), 1)]
    found, _ = _compute([_predictor(network) for network in networks], images)
    expected = np.mean([_whole(*pair) for pair in zip(networks, images, strict=True)], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1)])
def test_air_is_background_and_all_else_is_untouched_whatever_the_plan(mirror_axes):
    network, image = _network(), _image((64, 40, 35))
    plain, _ = _compute([_predictor(network)], [image], mirror_axes=mirror_axes)
    occupied = np.zeros((8, 5, 5), bool)
    occupied[2:5, 1:3, 2:4] = occupied[6, 4, 0] = True
    voxels = occupied.repeat(8, 0).repeat(8, 1).repeat(8, 2)[:64, :40, :35]
    for budget in (1e9, 2e7, 8e6):
        found, _ = _compute(
            [_predictor(network)],
            [image],
            occupied=occupied,
            block=(8, 8, 8),
            budget_bytes=budget,
            mirror_axes=mirror_axes,
        )
        np.testing.assert_allclose(found[:, voxels], plain[:, voxels], atol=1e-6)
        assert (found[0, ~voxels] == 1).all()
        assert (found[1:, ~voxels] == 0).all()


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize("shape", [(64, 64, 48), (33, 50, 70)])
def test_air_is_left_out_where_strides_make_the_volume_larger_than_its_blocks(
    monkeypatch, shape, mirror_axes
):
    network, image = _network("six levels"), _image(shape)
    plain, _ = _compute([_predictor(network)], [image], mirror_axes=mirror_axes)
    occupied = np.ones([-(-size // 16) for size in shape], bool)
    occupied[0, 0, 0] = False
    # What is read without having been written shows: memory without particular values holds NaN.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    for budget in (1e9, 4e6 * 2 ** len(mirror_axes)):
        found, _ = _compute(
            [_predictor(network)],
            [image],
            occupied=occupied,
            block=(16, 16, 16),
            budget_bytes=budget,
            mirror_axes=mirror_axes,
        )
        inside = np.s_[:, 16:, :, :]
        np.testing.assert_allclose(found[inside], plain[inside], atol=1e-6)
        assert (found[0, :16, :16, :16] == 1).all()


def test_air_is_background_in_windows_too():
    predictor, image = _predictor(_network()), _image((20, 18, 26))
    plain, _ = _compute([predictor], [image], windows=True)
    occupied = np.ones((3, 3, 4), bool)
    occupied[0] = False
    found, _ = _compute([predictor], [image], windows=True, occupied=occupied, block=(8, 8, 8))
    np.testing.assert_array_equal(found[:, 8:], plain[:, 8:])
    assert (found[0, :8] == 1).all()


def test_windows_keep_to_the_memory_too():
    with pytest.raises(ConfigError, match=r"20×18×26 voxels need .* --memory"):
        _compute([_predictor(_network())], [_image((20, 18, 26))], windows=True, budget_bytes=1e4)


def test_where_only_the_order_is_asked_for_the_labels_are_the_same():
    predictor, image = _predictor(_network()), _image((21, 18, 26))
    logits, _ = _compute([predictor], [image], probabilities=False)
    probabilities, _ = _compute([predictor], [image])
    np.testing.assert_array_equal(logits.argmax(0), probabilities.argmax(0))
    assert abs(logits.sum(0) - 1).max() > 0.1


@pytest.mark.parametrize("probabilities", [True, False])
def test_regions_have_a_sigmoid_each(probabilities):
    network, image = _network(), _image((24, 16, 32))
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].sigmoid().numpy()
    found, _ = _compute([_predictor(network)], [image], exclusive=False, probabilities=probabilities)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found.sum(0) - 1).max() > 0.1


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_a_norm_that_depends_on_the_tile_takes_windows(norm):
    predictor = _predictor(_network(norm=norm))
    assert predictor.levels is None
    assert predictor.tile_dependence
    found, plan = _compute([predictor], [_image((45, 33, 38))])
    assert plan == "8 windows of 32×32×32 voxels, overlapping by 50%, blended"
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_windows_can_be_asked_for_and_differ_only_near_their_borders():
    network, image = _network("one level"), _image((45, 33, 38))
    blended, plan = _compute([_predictor(network)], [image], windows=True, overlap=0.25)
    assert "overlapping by 25%" in plan
    difference = abs(blended - _whole(network, image))
    assert difference.max() > 1e-4
    assert (difference < 1e-5).mean() > 0.4


def test_progress_ends_with_all_parts_done():
    told = []
    with Scratch() as scratch:
        scores = compute_scores(
            [_predictor(_network())],
            [_image((45, 33, 38))],
            Options(budget_bytes=2e6, mirror_axes=(1,)),
            scratch,
            lambda done, total: told.append((done, total)),
        )
        for _ in scores.slabs:
            pass
    assert told[-1][0] == told[-1][1] == len(told)
