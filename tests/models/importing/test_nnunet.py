"""nnU-Net's results folders: the same logits as its networks, the same label maps, and clear refusals."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch

from medseg_brn.errors import ModelError
from medseg_brn.models.importing.importing import import_model
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.networks.surgery import convert_normalization, recalibrate
from medseg_brn.volumes.geometry import reorient
from medseg_brn.volumes.volume import Grid, Volume

LPS, RAS, ASR = np.diag((-1.0, -1, 1, 1)), np.eye(4), np.eye(4)[[2, 0, 1, 3]]


def _axes(forward):
    """For each of X, Y, Z the axis of the network: the one that array axis 2, 1, 0 became."""
    return [list(forward).index(axis) for axis in (2, 1, 0)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1)])
@torch.no_grad()
def test_logits_are_nnunets(save_nnunet, tmp_path, residual, forward):
    folder, (theirs,) = save_nnunet(residual, forward=forward)
    import_model(folder, tmp_path / "model")
    ours, description = load_network(tmp_path / "model")
    axes = _axes(forward)
    assert list(description.patch_size) == [(8, 12, 16)[axis] for axis in axes]
    assert description.preprocessing.spacing_mm == (1.25, 1.0, 1.5)
    image = torch.randn(2, 1, 8, 12, 16)
    order = (0, 1, *(axis + 2 for axis in axes))
    expected = theirs(image).permute(order)
    found = ours.eval()(image.permute(order).contiguous())
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_heads_of_deep_supervision_are_taken_too(save_nnunet, tmp_path):
    folder, (theirs,) = save_nnunet()
    import_model(folder, tmp_path / "model")
    ours, description = load_network(tmp_path / "model")
    assert description.network.deep_supervision
    expected = theirs.decoder.seg_layers
    assert ours.head.weight.equal(expected[1].weight)
    assert ours.coarser_heads[0].weight.equal(expected[0].weight)


def _predict_naively(network, array, spacing=None):
    """nnU-Net on a scan of one window: (X, Y, Z) as stored -> labels."""
    array = array.transpose(2, 1, 0)
    normalized = (array - array.mean()) / array.std()
    logits = network(torch.from_numpy(normalized[None, None]).float())
    return logits[0].argmax(0).numpy().transpose(2, 1, 0)


def _make_scan(axes):
    """16 x 12 x 8 voxels as stored: one window of the network, at its voxel size."""
    affine = axes @ np.diag((1.25, 1.0, 1.5, 1.0))
    values = np.random.default_rng(0).normal(50, 20, (16, 12, 8)).astype(np.float32)
    return Volume(values, Grid(values.shape, affine))


@pytest.mark.parametrize("axes", [LPS, RAS, ASR])
@torch.no_grad()
def test_each_scan_is_seen_as_it_is_stored(save_nnunet, tmp_path, axes):
    folder, (theirs,) = save_nnunet()
    notes = import_model(folder, tmp_path / "model")
    assert any("axes of its file" in note for note in notes)
    scan = _make_scan(axes)
    found = load_model(tmp_path / "model", precision="fp32").predict(scan)
    expected = _predict_naively(theirs, scan.array)
    assert len(np.unique(expected)) == 3
    assert (found.array == expected).mean() > 0.999  # ties fall either way
    assert np.array_equal(found.affine, scan.affine)


@torch.no_grad()
def test_a_model_told_its_axes_takes_scans_stored_in_any_way(save_nnunet, tmp_path):
    folder, (theirs,) = save_nnunet()
    notes = import_model(folder, tmp_path / "model", orientation="LPS")
    assert not any("axes of its file" in note for note in notes)
    model = load_model(tmp_path / "model", precision="fp32")
    scan = _make_scan(LPS)
    expected = _predict_naively(theirs, scan.array)
    assert (model.predict(scan).array == expected).mean() > 0.999
    for axes in ("RAS", "SPL", "AIR"):
        stored = reorient(scan, axes)
        found, probabilities = model.predict(stored, probabilities=True)
        assert found.grid.orientation == axes
        assert (reorient(found, "LPS").array == expected).mean() > 0.999
        assert (probabilities.argmax(0) == found.array).all()


def test_what_the_folder_says_is_in_the_description(save_nnunet, tmp_path):
    folder, _ = save_nnunet(scheme="CTNormalization", forward=(1, 0, 2))
    notes = import_model(folder, tmp_path / "model")
    _, description = load_network(tmp_path / "model")
    assert description.name == "Dataset900_Toy"
    assert description.class_names == ("background", "organ", "tumour")
    assert description.preprocessing.crop == "nonzero"
    assert description.preprocessing.intensity[0].ct_constants == (-60, 120, 40, 20)
    assert not description.inference.skip_air
    assert description.inference.mirror_axes == ()
    # The network's axes 0 and 1 are the array's 1 and 0, which are y and z.
    assert description.training["mirrored_axes"] == [1, 2]
    assert any("--mirror 1,2" in note for note in notes)
    assert (description.training["epochs"], description.training["fold"]) == (1000, "0")


def test_regions_are_taken_over(save_nnunet, tmp_path):
    folder, _ = save_nnunet(labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    import_model(folder, tmp_path / "model")
    network, description = load_network(tmp_path / "model")
    assert [(one.name, one.label_values, one.written_value) for one in description.regions] == [
        ("whole", (1, 2), 1),
        ("core", (2,), 2),
    ]
    assert network.num_classes == 2


def test_folds_become_an_ensemble(save_nnunet, tmp_path):
    folder, networks = save_nnunet(folds=2)
    assert any("2 folds" in note for note in import_model(folder, tmp_path / "model"))
    model = load_model(tmp_path / "model", precision="fp32")
    scan = _make_scan(LPS)
    array = scan.array.transpose(2, 1, 0)
    image = torch.from_numpy((array - array.mean()) / array.std())[None, None].float()
    with torch.no_grad():
        expected = sum(network(image).softmax(1) for network in networks)[0] / 2
    _, found = model.predict(scan, probabilities=True)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 3, 2, 1), atol=1e-5)


def test_features_double_from_stage_to_stage_in_older_plans(save_nnunet, tmp_path, plans):
    folder, _ = save_nnunet()
    described = plans(False)
    one = described["configurations"]["3d_fullres"]
    arguments = one.pop("architecture")["arch_kwargs"]
    one |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
    }
    (folder / "plans.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=r"encoder.stages.1.0.convs.0.conv.weight has shape \(6, 4"):
        import_model(folder, tmp_path / "old")  # features double there: 4, 8, 8, and not 4, 6, 8


def test_an_imported_network_s_normalization_is_converted_and_recalibrated(save_nnunet, tmp_path):
    folder, _ = save_nnunet()
    import_model(folder, tmp_path / "model")
    network, description = load_network(tmp_path / "model")
    convert_normalization(network, "batch_renorm")
    recalibrate(network, [torch.randn(2, 1, 16, 12, 8) for _ in range(3)])
    config = description.network.model_copy(update={"norm": "batch_renorm"})
    save_model(tmp_path / "renorm", network, description.model_copy(update={"network": config}))
    model = load_model(tmp_path / "renorm", precision="fp32")
    assert model.members[0].predictor.tile_dependence is None  # evaluated exactly from now on
    assert model.predict(_make_scan(LPS)).shape == (16, 12, 8)


# ---------------------------------------------------------------- refusals


def _change(plans: dict, **changes) -> dict:
    plans["configurations"]["3d_fullres"] |= changes
    return plans


def _change_network(plans: dict, **changes) -> dict:
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= changes
    return plans


REFUSED = {
    "2d": (lambda plans: _change(plans, patch_size=[8, 8]), "patch size .8, 8., and networks here are 3D"),
    "cascade": (lambda plans: _change(plans, previous_stage="3d_lowres"), "later stage of a cascade"),
    "normalization": (
        lambda plans: _change(plans, normalization_schemes=["RescaleTo01Normalization"]),
        "channel 0 is normalized by RescaleTo01Normalization",
    ),
    "inherits from itself": (
        lambda plans: _change(plans, inherits_from="3d_fullres"),
        "no configuration '3d_fullres' that ends somewhere",
    ),
    "reader": (
        lambda plans: plans | {"image_reader_writer": "Tiff3DIO"},
        "reader_writer is 'Tiff3DIO'",
    ),
    "transposition": (lambda plans: plans | {"transpose_forward": [0, 0, 1]}, "transpose_forward is"),
    "another norm": (
        lambda plans: _change_network(plans, norm_op="torch.nn.modules.batchnorm.BatchNorm3d"),
        "norm_op: Input should be 'torch.nn.modules.instancenorm.InstanceNorm3d'",
    ),
    "a class to locate": (lambda plans: _change_network(plans, nonlin="os.system"), "nonlin is os.system"),
    "an argument that ours lacks": (
        lambda plans: _change_network(plans, squeeze_excitation=True),
        "squeeze_excitation: Extra inputs",
    ),
    "a huge network": (lambda plans: _change_network(plans, n_conv_per_stage=10**9), "blocks"),
    "wide stages": (
        lambda plans: _change_network(plans, features_per_stage=[10**7] * 3),
        r"stem|encoder.stages.0.0.convs.0.conv.weight has shape",
    ),
    "labels": (lambda plans: plans, '"labels"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_network_of_ours_is_refused_by_name(save_nnunet, tmp_path, plans, name):
    folder, _ = save_nnunet()
    change, message = REFUSED[name]
    (folder / "plans.json").write_text(json.dumps(change(plans(False))))
    if name == "labels":
        (folder / "dataset.json").write_text("{}")
    with pytest.raises(ModelError, match=message):
        import_model(folder, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_another_architecture_is_refused_by_name(save_nnunet, tmp_path, plans):
    folder, _ = save_nnunet()
    described = plans(False)
    described["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="the network is a system, and of nnU-Net's networks PlainConvUNet"):
        import_model(folder, tmp_path / "model")


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_checkpoint_that_calls_something_is_refused_and_calls_nothing(save_nnunet, tmp_path):
    marker = tmp_path / "executed"
    folder, _ = save_nnunet(changes={"logging": _Payload(f"touch {marker}")})
    with pytest.raises(ModelError, match=r"final.pth is refused: it wants \w+\.system to be called"):
        import_model(folder, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_damaged_and_foreign_checkpoints_are_refused(save_nnunet, tmp_path):
    folder, (network,) = save_nnunet()
    path = folder / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as weights"):
            import_model(folder, tmp_path / "model")
    torch.save(network.state_dict(), path)
    with pytest.raises(ModelError, match="no checkpoint of nnU-Net v2"):
        import_model(folder, tmp_path / "model")
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="holds list"):
        import_model(folder, tmp_path / "model")


def test_numbers_that_take_no_room_in_the_file_are_refused(save_nnunet, tmp_path):
    folder, (network,) = save_nnunet()
    path = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(path) as stored:
        parts = {part.filename: stored.read(part) for part in stored.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name, content in parts.items():
            compressed.writestr(name, content)
    with pytest.raises(ModelError, match="parts are compressed or overlap"):
        import_model(folder, tmp_path / "model")
    repeated = torch.zeros(1).expand(10**12)
    weights = network.state_dict() | {"decoder.seg_layers.1.bias": repeated}
    checkpoint = {"init_args": {"configuration": "3d_fullres"}, "network_weights": weights}
    torch.save(checkpoint, path)
    with pytest.raises(ModelError, match=r"seg_layers\.1\.bias' is Tensor, and a dense tensor is expected"):
        import_model(folder, tmp_path / "model")


def test_tensors_that_are_missing_or_unknown_are_named(save_nnunet, tmp_path):
    folder, (network,) = save_nnunet()
    weights = network.state_dict()
    extra = weights | {"encoder.squeeze.weight": torch.zeros(3)}
    save = {"init_args": {"configuration": "3d_fullres"}}
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(save | {"network_weights": extra}, path)
    with pytest.raises(ModelError, match=r"encoder\.squeeze\.weight is no tensor of the network"):
        import_model(folder, tmp_path / "model")
    del weights["decoder.transpconvs.0.weight"]
    torch.save(save | {"network_weights": weights}, path)
    with pytest.raises(ModelError, match=r"decoder\.transpconvs\.0\.weight is missing"):
        import_model(folder, tmp_path / "model")
    torch.save(save | {"network_weights": {"a": 3}}, path)
    with pytest.raises(ModelError, match="'a' is int, and a dense tensor is expected"):
        import_model(folder, tmp_path / "model")


def test_a_folder_without_checkpoints_is_refused(save_nnunet, tmp_path):
    folder, _ = save_nnunet(folds=2)
    (folder / "fold_1" / "checkpoint_final.pth").unlink()
    with pytest.raises(ModelError, match=r"fold_1 has neither checkpoint_final.pth nor checkpoint_best.pth"):
        import_model(folder, tmp_path / "model")
    with pytest.raises(ModelError, match="There is no model at"):
        import_model(tmp_path / "nothing", tmp_path / "model")
    with pytest.raises(ModelError, match="is no model that can be imported"):
        import_model(tmp_path, tmp_path / "model")
