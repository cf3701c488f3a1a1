"""The scripts of a bundle do what the toolkit does, step by step: no step is taken from it."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from medseg_brn.cases.air import find_air_blocks
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images
from medseg_brn.cases.restoring import LabelMapRestorer
from medseg_brn.cases.spatial import plan_space
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import PostprocessingConfig
from medseg_brn.inference.postprocessing import postprocess_label_map
from medseg_brn.inference.windows import iterate_window_slabs
from medseg_brn.models.exporting import bundle_scripts
from medseg_brn.models.exporting.bundle_scripts.inference import (
    WholeVolumeInferer,
    WindowInferer,
    average_mirrored,
)
from medseg_brn.models.exporting.bundle_scripts.postprocessing import PostprocessLabelMapd
from medseg_brn.models.exporting.bundle_scripts.preparing import PrepareScand
from medseg_brn.models.exporting.bundle_scripts.restoring import RestoreLabelMapd
from medseg_brn.models.exporting.bundle_scripts.scans import list_scans
from medseg_brn.volumes.volume import Grid, Volume

BLOCK = (16, 16, 16)
CT = {"scheme": "ct", "low": -150.0, "high": 250.0, "mean": 40.0, "std": 77.0}
SCHEMES = (CT, {"scheme": "zscore"}, {"scheme": "zscore_nonzero"}, {"scheme": "none"})

sizes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 0.995, 1.0, 1.2, 2.0, 3.7, 5.0])] * 3)


def make_scan(shape, spacing_mm, channels: int = 1, seed: int = 0) -> list[Volume]:
    """A ball of tissue in air, in HU, with padding of exact zeros at one side."""
    rng = np.random.default_rng(seed)
    grid = Grid(tuple(shape), np.diag([*spacing_mm, 1.0]))
    away = sum(
        (np.linspace(-1.2, 1.2, size).reshape([-1 if axis == own else 1 for own in range(3)])) ** 2
        for axis, size in enumerate(shape)
    )
    volumes = []
    for _ in range(channels):
        values = np.where(away < 0.6, rng.normal(50, 60, shape), -1000 + rng.normal(0, 5, shape))
        values[: shape[0] // 4] = 0
        volumes.append(Volume(values.astype(np.float32), grid))
    return volumes


def as_item(volumes: list[Volume]) -> dict:
    array = np.stack([volume.array for volume in volumes])
    return {"image": MetaTensor(torch.from_numpy(array), affine=torch.tensor(volumes[0].affine))}


@settings(max_examples=60, deadline=None)
@given(sizes, spacings, spacings, st.sampled_from(SCHEMES), st.sampled_from(["none", "nonzero", "body"]))
def test_scans_are_prepared_as_by_the_toolkit(shape, own_mm, target_mm, scheme, crop):
    preprocessing = Preprocessing.model_validate(
        {"spacing_mm": target_mm, "crop": crop, "intensity": [scheme]}
    )
    volumes = make_scan(shape, own_mm)
    expected = prepare_images(volumes, preprocessing)
    prepared = PrepareScand(target_mm, crop, [scheme], skip_air=False)(as_item(volumes))
    record = expected.record
    assert prepared["region"].tolist() == [
        list(record.lower),
        list(record.upper),
        list(record.canonical_shape),
    ]
    found = np.asarray(prepared["image"].as_tensor())
    assert found.dtype == np.float32
    assert found.shape == expected.array.shape
    # Sums of float64 in another order, rounded to float32: the same but for the last bit of a few voxels.
    np.testing.assert_allclose(found, expected.array, rtol=3e-7, atol=3e-7 * np.abs(expected.array).max())


@pytest.mark.parametrize("scheme", [CT, {"scheme": "zscore"}], ids=["ct", "mri"])
@pytest.mark.parametrize("shape", [(80, 70, 60), (33, 90, 17)])
def test_air_is_the_toolkits(scheme, shape):
    preprocessing = Preprocessing.model_validate({"spacing_mm": (1.3, 1, 1), "intensity": [scheme] * 2})
    volumes = make_scan(shape, (1, 1, 1), channels=2)
    for volume in volumes:
        volume.array[:, : shape[1] // 2] = -1000 if scheme is CT else 0
    record = plan_space(volumes, "none", (1.3, 1, 1))
    air = find_air_blocks(volumes, preprocessing, record, BLOCK)
    prepared = PrepareScand((1.3, 1, 1), "none", [scheme] * 2, skip_air=True)(as_item(volumes))
    np.testing.assert_array_equal(~prepared["occupied"], air)
    assert 0 < air.sum() < air.size


@settings(max_examples=40, deadline=None)
@given(sizes, spacings, st.booleans(), st.integers(0, 100))
def test_label_maps_are_restored_as_by_the_toolkit(shape, target_mm, of_regions, seed):
    regions = (Region("whole", (1, 2), 1), Region("core", (2,), 2)) if of_regions else ()
    targets = Targets(("background", "rim", "core"), regions)
    volumes = make_scan(shape, (1, 1, 1))
    record = plan_space(volumes, "nonzero", target_mm)
    rng = np.random.default_rng(seed)
    scores = rng.random((targets.num_outputs, *record.network_shape), np.float32)
    if not of_regions:
        scores /= scores.sum(0)
    restorer = LabelMapRestorer(record, targets)
    restorer.take(scores)
    written = [region.written_class for region in regions]
    item = {
        "image": as_item(volumes)["image"],
        "pred": torch.from_numpy(scores),
        "region": np.array([record.lower, record.upper, record.canonical_shape]),
        "occupied": np.ones([-(-size // 16) for size in record.network_shape], bool),
    }
    restored = RestoreLabelMapd(written)(item)["pred"]
    assert restored.shape == (1, *shape)
    np.testing.assert_array_equal(np.asarray(restored[0]), restorer.finish())


def test_air_is_background_in_the_label_map():
    item = {
        "image": MetaTensor(torch.zeros(1, 32, 16, 16)),
        "pred": torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 32, 16, 16),
        "region": np.array([[0, 0, 0], [32, 16, 16], [32, 16, 16]]),
        "occupied": np.array([True, False]).reshape(2, 1, 1),
    }
    label_map = np.asarray(RestoreLabelMapd()(item)["pred"][0])
    assert (label_map[:16] == 1).all()
    assert (label_map[16:] == 0).all()


def test_nan_is_refused_before_and_after_the_network():
    with pytest.raises(ValueError, match="1 voxels are NaN or infinite"):
        PrepareScand((1, 1, 1), "none", [CT], False)({"image": MetaTensor([[[[np.nan]]]])})
    with pytest.raises(ValueError, match="has 1 channels, and the model takes 2"):
        PrepareScand((1, 1, 1), "none", [CT, CT], False)({"image": MetaTensor([[[[0.0]]]])})
    with pytest.raises(ValueError, match="probabilities contain NaN"):
        RestoreLabelMapd()({"pred": torch.full((2, 1, 1, 1), torch.nan)})


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("shape", [(12, 20, 9), (5, 8, 13)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_windows_are_averaged_as_by_the_toolkit(shape, mirror_axes, exclusive):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4), torch.nn.Conv3d(4, 3, 1)
    ).requires_grad_(False)
    image = torch.randn(1, *shape)
    swapped = (0, 2, 1)
    slabs = iterate_window_slabs(
        network,
        image.numpy(),
        patch_size=(8, 8, 8),
        overlap=0.4,
        mirror_axes=mirror_axes,
        mirrored_channels=swapped,
        exclusive=exclusive,
    )
    expected = torch.cat(list(slabs), 1)
    found = WindowInferer((8, 8, 8), 0.4, exclusive, mirror_axes, swapped)(MetaTensor(image[None]), network)
    np.testing.assert_allclose(found[0].numpy(), expected.numpy(), atol=1e-6)


def test_a_whole_volume_is_padded_at_its_upper_ends_also_where_it_is_mirrored():
    def network(image: torch.Tensor) -> torch.Tensor:
        assert image.shape[2:] == (4, 4, 2)
        first = image[:, :, :1].expand_as(image)  # what a voxel sees at the end where nothing is padded
        return torch.cat((first, image), 1)

    image = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4, 1)
    found = WholeVolumeInferer((4, 4, 2), True, (0,))(image, network)
    assert found.shape == (1, 2, 3, 4, 1)
    plain = torch.cat((image[:, :, :1].expand_as(image), image), 1).softmax(1)
    mirrored = torch.cat((image[:, :, -1:].expand_as(image), image), 1).softmax(1)
    np.testing.assert_allclose(found.numpy(), ((plain + mirrored) / 2).numpy(), rtol=1e-6)


def test_left_and_right_change_places_where_axis_0_is_mirrored_and_not_elsewhere():
    scores = torch.rand(1, 3, 2, 2, 2)

    def predict(image: torch.Tensor) -> torch.Tensor:
        return scores

    found = average_mirrored(predict, torch.zeros(1, 1, 2, 2, 2), (0, 1), (0, 2, 1))
    swapped = scores[:, [0, 2, 1]]
    terms = [scores, swapped.flip(2), scores.flip(3), swapped.flip(2, 3)]
    np.testing.assert_allclose(found.numpy(), torch.stack(terms).mean(0).numpy(), rtol=1e-6)


@pytest.mark.parametrize("of_regions", [False, True])
def test_label_maps_are_postprocessed_as_by_the_toolkit(of_regions):
    regions = (Region("whole", (1, 2), 1), Region("core", (2,), 2)) if of_regions else ()
    targets = Targets(("background", "rim", "core"), regions)
    plain = {
        targets.structure_names[0]: {"keep_largest": True, "fill_holes": True},
        targets.structure_names[1]: {"remove_below_mm3": 2.5},
    }
    rules = {name: PostprocessingConfig.model_validate(rule) for name, rule in plain.items()}
    coarse = np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.uint8)
    affine = np.diag([0.5, 1, 2, 1])
    expected = postprocess_label_map(Volume(coarse.copy(), Grid(coarse.shape, affine)), rules, targets)
    first = 0 if of_regions else 1
    transform = PostprocessLabelMapd(
        [{"structure": first + n, **rule.model_dump()} for n, rule in enumerate(rules.values())],
        targets.num_classes,
        [{"classes": one.classes, "written_class": one.written_class} for one in regions],
    )
    item = {"pred": MetaTensor(torch.from_numpy(coarse.astype(np.int32))[None], affine=affine)}
    found = np.asarray(transform(item)["pred"][0])
    np.testing.assert_array_equal(found, expected.array)
    assert (found != coarse).any()


def test_scans_are_files_or_groups_of_one_file_per_channel(tmp_path):
    for name in ("b_0001.nii.gz", "b_0000.nii.gz", "a.nii", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    both = [str(tmp_path / "b_0000.nii.gz"), str(tmp_path / "b_0001.nii.gz")]
    assert list_scans(str(tmp_path), 2) == [{"image": str(tmp_path / "a.nii")}, {"image": both}]
    assert [item["image"] for item in list_scans(str(tmp_path), 1)] == [str(tmp_path / "a.nii"), *both]
    with pytest.raises(ValueError, match=r"Case b\.nii\.gz has 2 files, and the model takes 3 channels"):
        list_scans(str(tmp_path), 3)
    with pytest.raises(ValueError, match="nowhere"):
        list_scans(str(tmp_path / "nowhere"), 1)


def test_scripts_know_nothing_but_torch_monai_numpy_and_scipy():
    allowed = {"torch", "monai", "numpy", "scipy", *sys.stdlib_module_names}
    for path in Path(bundle_scripts.__file__).parent.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported = {
            name.split(".")[0]
            for node in tree
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else
                         [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        }  # fmt: skip
        assert imported <= allowed, path.name
