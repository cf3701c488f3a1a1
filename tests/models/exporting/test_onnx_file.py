"""ONNX files: onnxruntime gives torch's logits at any size, and the file says what they mean."""

import json
import sys

import numpy as np
import pytest
import torch

from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.models.exporting.export import export_model
from medseg_brn.models.package import load_network, save_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def test_onnxruntime_gives_torchs_logits_at_sizes_of_any_multiple(save_tiny, tmp_path, architecture):
    folder = save_tiny(network=architecture)
    export_model(folder, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    trained = load_network(folder)[0].eval()
    for items, steps in ((1, (2, 2, 2)), (3, (2, 5, 3)), (1, (4, 2, 7))):
        size = [step * stride for step, stride in zip(steps, trained.strides_total, strict=True)]
        image = torch.randn(items, 1, *size, generator=torch.Generator().manual_seed(items))
        with torch.inference_mode():
            expected = trained(image).numpy()
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
        assert np.mean(logits.argmax(1) == expected.argmax(1)) >= 0.9999


def test_the_file_says_what_it_takes_and_what_it_gives(save_tiny, tmp_path):
    intensity = [
        {"scheme": "ct", "low": -100, "high": 300, "mean": 40.5, "std": 80},
        {"scheme": "zscore"},
    ]
    folder = save_tiny(
        network={"channels": (4, 6, 8), "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2))},
        modalities=("ct", "mri"),
        preprocessing={"spacing_mm": (1, 1, 2.5), "crop": "nonzero", "intensity": intensity},
        patch_size=(8, 8, 4),
    )
    export_model(folder, tmp_path / "model.onnx", "onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [one.version for one in model.opset_import] == [17]
    axes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 2, "x", "y", "z"]
    axes = [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "x", "y", "z"]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["medseg_brn.name"] == "tiny"
    assert told["medseg_brn.activation"] == "softmax"
    assert told["medseg_brn.licence"] == "CC-BY-4.0"
    assert "X, Y, Z run towards RAS" in told["medseg_brn.axes"]
    assert json.loads(told["medseg_brn.size_multiples"]) == [4, 4, 2]
    assert json.loads(told["medseg_brn.spacing_mm"]) == [1, 1, 2.5]
    assert json.loads(told["medseg_brn.intensity"]) == intensity
    assert json.loads(told["medseg_brn.channels"]) == ["ct", "mri"]
    assert json.loads(told["medseg_brn.class_names"]) == ["background", "tumour", "cyst"]
    assert json.loads(told["medseg_brn.label_values"]) == [0, 2, 500]


def test_the_same_model_gives_the_same_bytes(save_tiny, tmp_path):
    folder = save_tiny()
    for name in ("one.onnx", "other.onnx"):
        export_model(folder, tmp_path / name, "onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_install_it(save_tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{package} is not installed; .*pip install "medseg-brn\[onnx\]"'):
        export_model(save_tiny(), tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_place_that_cannot_be_written_to_is_told_and_nothing_is_left(save_tiny, tmp_path):
    folder = save_tiny()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="file"):
        export_model(folder, tmp_path / "file" / "model.onnx", "onnx")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(DataError, match="a folder is there, and a file is to be written"):
        export_model(folder, tmp_path / "model.onnx", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "model.onnx"]


def test_another_ending_is_refused_with_the_one_that_would_do(save_tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"ends in \.onnx, and the output is .*model\.pt2; give .*pt2\.onnx"
    ):
        export_model(save_tiny(), tmp_path / "model.pt2", "onnx")


def test_a_model_whose_logits_are_nan_is_not_exported(save_tiny, tmp_path):
    network, description = load_network(save_tiny())
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    save_model(tmp_path / "model", network, description)
    with pytest.raises(ModelError, match="disagrees with the trained one"):
        export_model(tmp_path / "model", tmp_path / "model.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
