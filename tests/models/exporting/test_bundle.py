"""MONAI bundles: what is in them, and that MONAI's own runner gives the label maps that the toolkit gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medseg_brn.errors import ModelError
from medseg_brn.models.exporting import bundle_scripts
from medseg_brn.models.exporting.export import export_model
from medseg_brn.models.package import load_model
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

# Of MONAI's specification of bundles.
MANDATORY = (
    "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
TENSOR_KEYS = (
    "type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
    "channel_def",
)  # fmt: skip
EXPRESSIONS = {
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
    "handlers.0.load_path": "$@bundle_root + '/models/model.pt'",
    "run.0": "$@evaluator.run()",
}
# MONAI's runner, where this toolkit is as good as not installed.
RUN = (
    "import runpy, sys; sys.modules['medseg_brn'] = None; "
    "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
)
ANISOTROPIC = {"channels": (4, 6, 8), "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)), "encoder": "residual"}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def list_texts(content, place=()) -> dict[str, str]:
    """Every text in nested JSON, by its place."""
    if isinstance(content, str):
        return {".".join(place): content}
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    found: dict[str, str] = {}
    for key, value in items:
        found |= list_texts(value, (*place, str(key)))
    return found


def test_a_bundle_has_the_files_and_fields_of_monais_specification(save_tiny, tmp_path):
    export_model(save_tiny(network=ANISOTROPIC), tmp_path / "bundle", "monai")
    bundle = tmp_path / "bundle"
    scripts = {f"scripts/{path.name}" for path in Path(bundle_scripts.__file__).parent.glob("*.py")}
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == scripts | {
        "configs/inference.json", "configs/metadata.json", "models/model.pt", "docs/README.md",
        "docs/license.txt",
    }  # fmt: skip
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert [name for name in MANDATORY if name not in metadata] == []
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert tuple(image) == tuple(pred) == TENSOR_KEYS
    assert image["spatial_shape"] == ["4*n", "4*n", "2*n"]
    assert (image["modality"], image["num_channels"], pred["num_channels"]) == ("MR", 1, 3)
    assert pred["channel_def"] == {"0": "background", "1": "tumour", "2": "cyst"}
    assert metadata["medseg_brn"]["label_values"] == [0, 2, 500]
    assert "scipy" not in metadata["required_packages_version"]
    assert "CC-BY-4.0" in (bundle / "docs" / "license.txt").read_text()
    assert "- 500: cyst" in (bundle / "docs" / "README.md").read_text()


def test_the_config_holds_no_expression_but_the_few_that_monais_runner_needs(save_tiny, tmp_path):
    rules = {"postprocessing": {"cyst": {"keep_largest": True}}}
    export_model(save_tiny(inference=rules), tmp_path / "bundle", "monai")
    config = read_json(tmp_path / "bundle" / "configs" / "inference.json")
    texts = list_texts(config)
    assert {place: text for place, text in texts.items() if text.startswith("$")} == EXPRESSIONS
    targets = {text for place, text in texts.items() if place.endswith("_target_") and "." in text}
    assert {target.split(".")[0] for target in targets} == {"scripts"}
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
    assert parser["evaluator"]["_target_"] == "SupervisedEvaluator"
    assert (
        "scipy" in read_json(tmp_path / "bundle" / "configs" / "metadata.json")["required_packages_version"]
    )


def test_the_weights_load_without_executing_anything(save_tiny, tmp_path):
    export_model(save_tiny(), tmp_path / "bundle", "monai")
    weights = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    config = read_json(tmp_path / "bundle" / "configs" / "inference.json")["network_def"]
    assert config.pop("_target_") == "scripts.network.FoldedUNet"
    network = bundle_scripts.network.FoldedUNet(**config)
    network.load_state_dict(weights)  # every name and shape


def test_what_holds_something_else_is_not_replaced_and_a_bundle_is(save_tiny, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("sea")
    with pytest.raises(ModelError, match="holiday holds files that are no bundle"):
        export_model(save_tiny(), tmp_path / "holiday", "monai")
    assert [path.name for path in (tmp_path / "holiday").iterdir()] == ["photo.jpg"]
    for name in ("first", "second"):
        export_model(save_tiny(name, name=name), tmp_path / "bundle", "monai")
    assert read_json(tmp_path / "bundle" / "configs" / "metadata.json")["name"] == "second"


def test_a_failed_export_leaves_the_old_bundle_and_nothing_else(save_tiny, tmp_path):
    folder = save_tiny()
    export_model(folder, tmp_path / "bundle", "monai")
    before = (tmp_path / "bundle" / "models" / "model.pt").read_bytes()
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="damaged"):
        export_model(folder, tmp_path / "bundle", "monai")
    assert (tmp_path / "bundle" / "models" / "model.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]


CASES = {
    "anisotropic, thick slices, other voxel size": {"network": ANISOTROPIC},
    "windows, mirrored": {
        "network": {"channels": (4, 6), "norm": "instance"},
        "inference": {"mirror_axes": (0, 1), "overlap": 0.3},
        "mirrored_classes": [("tumour", "cyst")],
    },
    "regions, postprocessed, mirrored, two channels": {
        "class_names": ("background", "oedema", "core"),
        "label_values": (0, 10, 40),
        "regions": [
            {"name": "tumour", "label_values": (10, 40), "written_value": 10},
            {"name": "core", "label_values": (40,), "written_value": 40},
        ],
        "modalities": ("ct", "mri"),
        "preprocessing": {
            "spacing_mm": (1, 1, 1.5),
            "crop": "body",
            "intensity": [
                {"scheme": "ct", "low": -2, "high": 2, "mean": 0.1, "std": 0.9},
                {"scheme": "zscore_nonzero"},
            ],
        },
        "inference": {
            "mirror_axes": (2,),
            "postprocessing": {"tumour": {"keep_largest": True}, "core": {"remove_below_mm3": 8}},
        },
    },
}
OBLIQUE = np.array([[0.0, -1.1, 0.2, 30], [0.9, 0.1, 0.0, -20], [0.0, 0.2, 2.3, 5], [0, 0, 0, 1]])


def write_scans(folder: Path, channels: int) -> None:
    """One scan with all channels in a file and, of an oblique grid, one with a file for each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape, affine in (("a", (21, 18, 13), np.diag([-1.0, 1, 1, 1])), ("b", (17, 26, 9), OBLIQUE)):
        scan = rng.normal(size=(*shape, channels)).astype(np.float32)
        scan[:3] = 0
        if name == "a" or channels == 1:
            array = scan if channels > 1 else scan[..., 0]
            write_nifti_of(array, affine, folder / f"{name}.nii.gz")
            continue
        for channel in range(channels):
            volume = Volume(scan[..., channel], Grid(shape, affine))
            write_volume(volume, folder / f"{name}_{channel:04}.nii.gz")


def write_nifti_of(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(array, affine).to_filename(path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_monais_runner_gives_the_toolkits_label_maps(save_tiny, tmp_path, changes):
    for package in ("fire", "ignite"):
        pytest.importorskip(package)
    folder = save_tiny(**changes)
    export_model(folder, tmp_path / "bundle", "monai")
    model = load_model(folder, "cpu", "fp32")
    write_scans(tmp_path / "scans", model.description.in_channels)
    arguments = ["--dataset_dir", str(tmp_path / "scans"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", "--config_file", "configs/inference.json", *arguments],
        cwd=tmp_path / "bundle",
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 2
    for path in written:
        stem = path.name.removesuffix(".nii.gz").removesuffix("_0000")
        expected = model.predict(sorted((tmp_path / "scans").glob(f"{stem}*")))
        found = read_volume(path)
        assert found.array.dtype == expected.array.dtype
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
        assert len(np.unique(found.array)) > 1
