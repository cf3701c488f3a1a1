"""Inference in 8-bit integers: the same labels whatever the plan, and clear words where it cannot be."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from medseg_brn.errors import ConfigError
from medseg_brn.inference.plan import Plan
from medseg_brn.inference.precision import choose_precision
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.inference.predictor import Predictor
from medseg_brn.inference.tiles import round_up
from medseg_brn.networks.folding import fold
from medseg_brn.networks.quantization import measure_ranges
from medseg_brn.networks.quantized_layers import weight_limit
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.volumes.scratch import Scratch

CPU = torch.device("cpu")
NETWORKS = {
    "four levels": {"channels": (4, 6, 8, 10), "encoder_blocks": 2},
    "six levels": {"channels": (4, 4, 6, 6, 8, 8), "encoder_blocks": (1, 2, 1, 1, 1, 1)},
    "one level": {"channels": (4,), "encoder_blocks": 2},
    "anisotropic": {
        "channels": (4, 6, 8),
        "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)],
        "kernels": [(3, 3, 1), (3, 3, 3), (5, 3, 3)],
        "decoder_blocks": 2,
    },
}
SHARES = (1, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15)  # of the memory that the most generous plan takes

needs_int8 = pytest.mark.skipif(weight_limit() is None, reason="this processor has no 8-bit convolutions")


def _network(name="four levels", seed=0, **options) -> UNet3d:
    torch.manual_seed(seed)
    network = UNet3d(2, 3, **{**NETWORKS[name], **options})
    for _ in range(3):
        network(torch.randn(2, 2, 64, 64, 64))
    return network.eval()


def _ranges(network: UNet3d) -> dict[str, tuple[float, float]]:
    torch.manual_seed(1)
    return measure_ranges(fold(network), [torch.randn(1, 2, 64, 64, 64)])


def _predictor(network: UNet3d, dtype=torch.uint8) -> Predictor:
    return Predictor(network, (32, 32, 32), CPU, dtype, _ranges(network))


def _image(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


def _compute(predictors, images, **options) -> tuple[np.ndarray, str]:
    with Scratch() as scratch:
        scores = compute_scores(predictors, images, Options(**options), scratch)
        slabs = list(scores.slabs)
    return np.concatenate(slabs, axis=1), scores.plan


def _whole(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """The quantized network, called on the volume in one piece."""
    x, y, z = image.shape[1:]
    more = np.subtract(round_up((x, y, z), predictor.network.strides_total), (x, y, z)).tolist()
    padded = functional.pad(torch.from_numpy(image)[None], (0, more[2], 0, more[1], 0, more[0]))
    with torch.inference_mode():
        return predictor.network(padded)[0, :, :x, :y, :z].softmax(0).numpy()


@needs_int8
@pytest.mark.parametrize("shape", [(45, 33, 38), (32, 61, 23)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_gives_the_labels_of_the_whole_volume(name, shape):
    predictor, image = _predictor(_network(name)), _image(shape)
    expected = _whole(predictor, image)
    most = predictor.plan(shape, 1e12).predicted_bytes
    plans = set()
    for share in SHARES:
        try:
            found, plan = _compute([predictor], [image], budget_bytes=share * most)
        except ConfigError:  # less than the thriftiest plan needs
            continue
        plans.add(plan)
        np.testing.assert_array_equal(found.argmax(0), expected.argmax(0))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(plans) >= 4


@needs_int8
def test_plans_with_files_and_with_features_computed_twice_are_among_them():
    predictor, image = _predictor(_network("six levels")), _image((45, 33, 38))
    expected = _whole(predictor, image)
    plans = []
    for budget in (3e6, 2e6, 1.5e6, 1.2e6, 1e6):
        try:
            found, plan = _compute([predictor], [image], budget_bytes=budget)
        except ConfigError:
            continue
        plans.append(plan)
        np.testing.assert_array_equal(found.argmax(0), expected.argmax(0))
    assert any("on file" in plan for plan in plans)
    assert any("computed twice" in plan for plan in plans)


@needs_int8
def test_labels_are_nearly_those_of_float32():
    network, image = _network(), _image((45, 33, 38))
    int8, fp32 = _predictor(network), _predictor(network, torch.float32)
    found, expected = (_compute([predictor], [image])[0].argmax(0) for predictor in (int8, fp32))
    assert 0.9 < (found == expected).mean() < 1


@needs_int8
def test_air_mirrorings_and_members_work_as_in_other_formats():
    predictors, images = [_predictor(_network(seed=seed)) for seed in (0, 1)], [_image((21, 18, 26))] * 2
    occupied = np.zeros((3, 3, 4), bool)
    occupied[1, 1, 2] = True
    found, plan = _compute(
        predictors, images, mirror_axes=(1,), occupied=occupied, block=(8, 8, 8), budget_bytes=8e6
    )
    inside = np.s_[:, 8:16, 8:16, 16:24]
    expected = [
        np.flip(_whole(predictor, np.flip(image, axes).copy()), axes)
        for predictor, image in zip(predictors, images, strict=True)
        for axes in ((), (2,))
    ]
    np.testing.assert_allclose(found[inside], np.mean(expected, axis=0)[inside], atol=1e-5)
    assert plan.endswith("4 passes averaged")
    assert (found[0] == 1).sum() >= found[0].size - 8**3


@needs_int8
def test_overlapping_windows_can_be_asked_for():
    predictor, image = _predictor(_network("one level")), _image((45, 33, 38))
    blended, _ = _compute([predictor], [image], windows=True, overlap=0.5)
    np.testing.assert_allclose(blended.sum(0), 1, atol=1e-5)
    assert (blended.argmax(0) == _whole(predictor, image).argmax(0)).mean() > 0.95


@needs_int8
def test_features_are_planned_as_bytes():
    network, shape = _network(channels=(16, 24, 32, 40)), (64, 64, 64)

    def plan(dtype) -> Plan:
        return _predictor(network, dtype).plan(shape, 1e12)

    assert plan(torch.uint8).predicted_bytes < 0.45 * plan(torch.float32).predicted_bytes


@needs_int8
def test_int8_is_taken_only_where_it_is_asked_for():
    assert choose_precision("int8", CPU) == torch.uint8
    assert choose_precision("auto", CPU) != torch.uint8


def test_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"int8 was asked for on device cuda.*--device cpu"):
        choose_precision("int8", torch.device("cuda"))


def test_a_model_that_was_not_calibrated_names_the_command():
    with pytest.raises(ConfigError, match=r"no activation_ranges.*medseg-brn models quantize"):
        Predictor(_network(), (32, 32, 32), CPU, torch.uint8)


@pytest.mark.parametrize(
    ("options", "message"), [({"norm": "instance"}, "normalizes by"), ({"encoder": "residual"}, "residual")]
)
def test_networks_that_cannot_compute_in_int8_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"cannot compute in int8: .*{message}"):
        Predictor(_network(**options), (32, 32, 32), CPU, torch.uint8, {})
