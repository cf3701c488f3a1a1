"""MONAI bundles, read as data: what MONAI itself computes with them, and refusals of all that would run."""

import json
import os

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medseg_brn.errors import ModelError
from medseg_brn.models.description import read_description
from medseg_brn.models.importing.importing import import_model
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.networks.surgery import convert_normalization, recalibrate
from medseg_brn.volumes.nifti import write_nifti
from medseg_brn.volumes.volume import Grid, Volume

SPACING_MM = (1.5, 1.5, 2.0)
CONFIG = {
    "imports": ["$import glob"],
    "bundle_root": "/workspace/bundle",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "patch": [16, 16, 16],
    "network_def": {
        "_target_": "UNet",
        "_desc_": "a small one",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8, 8],
        "strides": [2, 2],
        "num_res_units": 1,
        "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "LAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@keys#0",
                "a_min": -57,
                "a_max": 164,
                "b_min": -1,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "keys": ["image", "label"],
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": "@patch",
        "sw_batch_size": 4,
        "overlap": "@overlap",
        "device": "$torch.device('cpu')",  # of no account here
    },
    "overlap": 0.3,
    "postprocessing": {"_target_": "Compose", "transforms": "$[os.system('false')]"},
    "run": ["$@evaluator.run()"],
}
METADATA = {
    "name": "Spleen",
    "version": "0.1",
    "license": "Apache-2.0",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen", "2": "cyst"}}},
    },
}


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle with a random network, changed as told, and returns its folder and the network."""

    def write(change=lambda config: None, metadata=METADATA, weights=None):
        config = json.loads(json.dumps(CONFIG))
        torch.manual_seed(0)
        network = ConfigParser(config).get_parsed_content("network_def")
        network(torch.randn(4, 1, 16, 16, 16))  # statistics that are not 0 and 1
        change(config)
        folder = tmp_path / "bundle"
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
        (folder / "configs" / "inference.json").write_text(json.dumps(config))
        torch.save(weights or network.state_dict(), folder / "models" / "model.pt")
        return folder, network.eval()

    return write


def test_label_maps_are_what_monai_computes(bundle, tmp_path):
    folder, network = bundle()
    import_model(folder, tmp_path / "model")
    values = np.random.default_rng(0).normal(50, 80, (16, 16, 16)).astype(np.float32)
    grid = Grid(values.shape, np.diag((*SPACING_MM, 1)))  # RAS, so that orientation has something to do
    write_nifti(values, grid, tmp_path / "scan.nii.gz")
    prepared = ConfigParser({**CONFIG, "postprocessing": None}).get_parsed_content("preprocessing")(
        {"image": str(tmp_path / "scan.nii.gz")}
    )["image"]
    with torch.no_grad():
        expected = network(prepared.as_tensor()[None])[0].argmax(0).flip(0).numpy()
    assert len(np.unique(expected)) == 3
    found = load_model(tmp_path / "model", precision="fp32").predict(tmp_path / "scan.nii.gz")
    assert (found.array == expected).mean() > 0.999  # ties fall either way


def test_what_the_bundle_says_is_in_the_description(bundle, tmp_path):
    folder, network = bundle()
    import_model(folder, tmp_path / "model")
    ours, description = load_network(tmp_path / "model")
    for name, tensor in network.state_dict().items():
        assert ours.state_dict()[f"network.{name}"].equal(tensor)
    assert (description.name, description.licence) == ("Spleen", "Apache-2.0")
    assert description.class_names == ("background", "spleen", "cyst")
    assert description.modalities == ("ct",)
    assert description.patch_size == (16, 16, 16)
    assert description.inference.overlap == 0.3
    preprocessing = description.preprocessing
    assert (preprocessing.spacing_mm, preprocessing.orientation) == (SPACING_MM, "LAS")
    # -57 becomes -1 and 164 becomes 1: the middle, 53.5, is the mean, and half the range is one deviation.
    assert preprocessing.intensity[0].ct_constants == (-57, 164, 53.5, 110.5)
    text = (tmp_path / "model" / "model.json").read_text()
    assert "$" not in text
    assert '"kind": "monai"' in text


def test_scaling_by_the_extremes_is_undone_by_a_normalization_and_else_refused(bundle, tmp_path):
    def change(config):
        config["preprocessing"]["transforms"][4:] = [
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": 1},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
        ]

    folder, _ = bundle(change)
    import_model(folder, tmp_path / "model")
    _, description = load_network(tmp_path / "model")
    assert description.preprocessing.intensity[0].scheme == "zscore"
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    del config["preprocessing"]["transforms"][-1]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"#4 \(ScaleIntensityd\) scales by a scan's extremes"):
        import_model(folder, tmp_path / "second")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"_target_": "LoadImaged", "as_closest_canonical": True},
            r"\(LoadImaged\) turns axes while reading",
        ),
        ({"_target_": "CastToTyped", "dtype": "uint8"}, r"\(CastToTyped\) rounds values to uint8"),
        ({"_target_": "EnsureTyped", "dtype": ["float32", "int16"]}, "rounds values to int16"),
    ],
)
def test_reading_and_casts_that_change_something_are_refused(bundle, tmp_path, step, message):
    def change(config):
        config["preprocessing"]["transforms"][0] = {**step, "keys": "image"}

    folder, _ = bundle(change)
    with pytest.raises(ModelError, match=message):
        import_model(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_its_normalization_is_converted_and_recalibrated(bundle, tmp_path):
    folder, _ = bundle()
    import_model(folder, tmp_path / "model")
    network, description = load_network(tmp_path / "model")
    batches = [torch.randn(2, 1, 16, 16, 16)]
    recalibrate(network, batches)
    save_model(tmp_path / "again", network, description)
    convert_normalization(network, "batch_renorm")
    arguments = {**description.network.arguments, "norm": "batchrenorm"}
    config = description.network.model_copy(update={"arguments": arguments})
    save_model(tmp_path / "renorm", network, description.model_copy(update={"network": config}))
    scan = Volume(np.random.default_rng(0).normal(50, 80, (20, 16, 16)), Grid((20, 16, 16), np.eye(4)))
    one, other = (load_model(tmp_path / name, precision="fp32") for name in ("again", "renorm"))
    assert (one.predict(scan).array == other.predict(scan).array).mean() > 0.999


def test_a_state_dict_and_a_description_are_a_model(bundle, tmp_path):
    folder, _ = bundle()
    import_model(folder, tmp_path / "model")
    described = tmp_path / "model" / "model.json"
    import_model(folder / "models" / "model.pt", tmp_path / "other", description=described)
    assert read_description(tmp_path / "other" / "model.json") == read_description(described)
    with pytest.raises(ModelError, match="a description goes with a file of weights"):
        import_model(folder / "models" / "model.pt", tmp_path / "third")


def test_yaml_is_read_without_its_tags(bundle, tmp_path):
    folder, _ = bundle()
    config = folder / "configs" / "inference.json"
    config.with_suffix(".yaml").write_text(config.read_text())  # JSON is YAML too
    config.unlink()
    import_model(folder, tmp_path / "model")
    marker = tmp_path / "executed"
    text = f'patch: !!python/object/apply:os.system ["touch {marker}"]\n'
    config.with_suffix(".yaml").write_text(text)
    with pytest.raises(ModelError, match="could not determine a constructor for the tag"):
        import_model(folder, tmp_path / "second")
    config.with_suffix(".yaml").write_text("a: &a [1]\nb: [*a, *a]\n")
    with pytest.raises(ModelError, match="YAML aliases"):
        import_model(folder, tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]


def _set(*path):
    """A change of the configuration: the last item is put where the others lead."""

    def change(config):
        *places, last, value = path
        for place in places:
            config = config[place]
        config[last] = value

    return change


def _first(step):
    return lambda config: config["preprocessing"]["transforms"].insert(2, step)


def _last(step):
    return lambda config: config["preprocessing"]["transforms"].append(step)


TRANSFORMS = ("preprocessing", "transforms")
REFUSED = {
    "an expression": (
        _set("network_def", "channels", "$__import__('os').system('touch executed')"),
        r"network_def#channels is an expression, .*nothing is evaluated",
    ),
    "a target of its own": (
        _set("network_def", "_target_", "os.system"),
        "_target_ is 'os.system'",
    ),
    "a script's network": (
        _set("network_def", "_target_", "scripts.net.Mine"),
        "scripts of a bundle are",
    ),
    "a network of no use": (_set("network_def", "_target_", "Discriminator"), "'Discriminator' is none of"),
    "an argument": (_set("network_def", "preprocess", 1), "preprocess is none of the arguments"),
    "a target inside": (
        _set("network_def", "act", {"_target_": "os.system", "command": "touch executed"}),
        "cannot be made of|is none of",
    ),
    "an instruction": (_set("network_def", "_disabled_", "$True"), "network_def#_disabled_"),
    "a macro": (_set("network_def", "channels", "%other.json::a"), "network_def#channels is a macro"),
    "a reference to nothing": (
        _set("inferer", "roi_size", "@size"),
        "no entry 'size', which inferer#roi_size",
    ),
    "a reference to itself": (_set("patch", ["@patch"]), "refers to itself"),
    "a transform": (
        _first({"_target_": "Resized", "keys": "image"}),
        r"#2 \(Resized\) is not known",
    ),
    "a call": (_first({"_target_": "os.system", "command": "touch executed"}), r"\(os.system\) is not known"),
    "no clipping": (_set(*TRANSFORMS, 4, "clip", False), "does not clip"),
    "two intensities": (
        _last({"_target_": "NormalizeIntensityd", "keys": "image"}),
        r"transforms#6 \(NormalizeIntensityd\) stands after another change of intensities",
    ),
    "exchanged axes": (_set(*TRANSFORMS, 2, "axcodes", "SPL"), "axcodes are 'SPL'"),
    "crop of a CT": (_first({"_target_": "CropForegroundd", "keys": "image"}), "crops a CT"),
    "no voxel size": (lambda config: config["preprocessing"]["transforms"].pop(3), "has no Spacingd"),
    "an inferer": (_set("inferer", "_target_", "SimpleInferer"), "_target_ is 'SimpleInferer'"),
    "windows": (_set("patch", [10, 16, 16]), "does not take patches"),
    "channels": (_set("network_def", "out_channels", 2), "names 3 output channels, the network has 2"),
    "other weights": (_set("network_def", "channels", [4, 8, 12]), "does not fit the network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_as_data_is_refused_by_name(bundle, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[name]
    folder, _ = bundle(change)
    with pytest.raises(ModelError, match=message):
        import_model(folder, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_regions_are_refused(bundle, tmp_path):
    metadata = json.loads(json.dumps(METADATA))
    names = {"0": "tumour core", "1": "whole tumour", "2": "enhancing"}
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = names
    folder, _ = bundle(metadata=metadata)
    with pytest.raises(ModelError, match=r"channel 0 is \('tumour core',\) and not the background"):
        import_model(folder, tmp_path / "model")


class _Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_weights_that_call_something_are_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = bundle(weights={"model": _Payload()})
    with pytest.raises(ModelError, match=r"model.pt is refused: it wants \w+\.system to be called"):
        import_model(folder, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
