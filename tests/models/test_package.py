"""Saving and loading: what comes back is what was given, and nothing damaged comes back at all."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.models.architecture import build_network
from medseg_brn.models.package import find_model_folder, load_model, load_network, save_model
from medseg_brn.networks.surgery import fold


@pytest.fixture
def folder(tmp_path, network, description):
    save_model(tmp_path / "model", network, description)
    return tmp_path / "model"


def _change_json(folder, **changes) -> None:
    plain = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(plain | changes))


def test_weights_and_description_come_back_as_they_were(folder, network, description):
    loaded, loaded_description = load_network(folder)
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert loaded_description.model_copy(update={"weights_sha256": ""}) == description
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_training_can_go_on_from_a_loaded_network(folder, network):
    loaded, _ = load_network(folder)
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(loaded.train()(image), network.train()(image))
    loaded(image).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "group", "instance", "layer", "none"])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_the_loaded_model_computes_what_the_network_computed(tmp_path, description, norm, encoder):
    options = {"norm": norm, "encoder": encoder, "deep_supervision": True, "channels": (4, 6, 8)}
    changed = description.model_copy(update={"network": NetworkConfig(**options)})
    network = build_network(changed.network, 1, 3)
    image = torch.randn(2, 1, 8, 8, 8)
    network(image)
    save_model(tmp_path, network, changed)
    model = load_model(tmp_path, device="cpu", precision="fp32")
    loaded = model.members[0].predictor.network
    assert not loaded.training
    torch.testing.assert_close(loaded(image), network.eval()(image), atol=1e-5, rtol=1e-5)
    norms = [module for module in loaded.modules() if type(module).__name__ == "BatchRenorm3d"]
    assert norms == []


def test_channels_last_and_contiguous_networks_are_saved_alike(tmp_path, network, description):
    save_model(tmp_path / "one", network, description)
    save_model(tmp_path / "two", network.to(memory_format=torch.channels_last_3d), description)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_run_folder_is_taken_for_the_model_in_it(tmp_path, folder):
    assert find_model_folder(tmp_path) == folder
    assert find_model_folder(str(folder)) == folder
    assert load_model(tmp_path).description.name == "tiny"


def test_saving_again_replaces_the_model_and_leaves_nothing_else(tmp_path, folder, network, description):
    save_model(folder, network, description.model_copy(update={"name": "newer"}))
    assert load_network(folder)[1].name == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_saving_never_replaces_a_folder_of_something_else(tmp_path, network, description):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="holds files that are no model"):
        save_model(tmp_path, network, description)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_weights_that_are_not_the_described_network_s_are_not_saved(tmp_path, network, description):
    with pytest.raises(ModelError, match="do not fit"):
        save_model(tmp_path / "model", fold(network, (1, 1, 8, 8, 8)), description)
    assert list(tmp_path.iterdir()) == []


def test_no_model_at_all(tmp_path):
    with pytest.raises(ModelError, match="nowhere: it does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"neither model\.json nor model/model\.json"):
        load_model(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ModelError, match=r"No model in the run .* yet"):
        load_model(tmp_path)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: .*No such file"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ModelError, match=r"model\.safetensors is damaged or was exchanged: its SHA-256 is \w{64}"
    ):
        load_model(folder)


def test_a_single_changed_bit_is_found(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or was exchanged"):
        load_model(folder)


def test_weights_of_another_kind_of_file_with_their_own_checksum(folder):
    content = b"\x80\x04 a pickle, perhaps"
    (folder / "model.safetensors").write_bytes(content)
    _change_json(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 1, 50, -3])
def test_a_truncated_description(folder, kept):
    path = folder / "model.json"
    path.write_text(path.read_text()[:kept])
    with pytest.raises(ModelError, match=r"model\.json cannot be read as JSON"):
        load_model(folder)


@pytest.mark.parametrize("foreign", ["{}", "[1]", '"text"', '{"plans_name": "nnUNetPlans"}', "null"])
def test_json_of_something_else(folder, foreign):
    (folder / "model.json").write_text(foreign)
    with pytest.raises(ModelError, match="describes no model of this toolkit"):
        load_model(folder)


def test_a_description_that_is_no_text(folder):
    (folder / "model.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(folder)


def test_a_newer_format_asks_for_an_upgrade(folder):
    _change_json(folder, format_version=2, something_new=True)
    with pytest.raises(ModelError, match=r"format version 2, .* up to version 1; upgrade"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_values": [0, 2]}, "3 class_names but 2 label_values"),
        ({"label_values": [0, 2, 2]}, "repeat a value"),
        ({"modalities": ["mri", "mri"]}, "for 1 channels but modalities for 2"),
        ({"modalities": ["xray"]}, r"modalities\.0: .*'mri' or 'ct' \(got 'xray'\)"),
        ({"patch_size": [8, 0, 8]}, r"patch_size\.1: .*greater than or equal to 1 \(got 0\)"),
        ({"execute": "rm"}, "execute: Extra inputs are not permitted"),
        ({"format_version": "x"}, "format_version"),
        ({"preprocessing": {"spacing_mm": [1, 1, -1], "intensity": []}}, r"preprocessing\.spacing_mm\.2"),
        ({"patch_size": [9, 8, 8]}, r"describes no network: Patch size \(9, 8, 8\)"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_rule(folder, changes, message):
    _change_json(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_another_architecture_than_the_weights(folder):
    _change_json(folder, network=NetworkConfig(channels=(4, 8)).model_dump(mode="json"))
    with pytest.raises(
        ModelError, match=r"do not fit .*has shape \(6, 4, 3, 3, 3\) and not \(8, 4, 3, 3, 3\)"
    ):
        load_model(folder)


def test_a_description_cannot_ask_for_memory(folder):
    _change_json(folder, network=NetworkConfig(channels=(100_000, 100_000)).model_dump(mode="json"))
    with pytest.raises(ModelError, match="do not fit"):  # 100 TB of weights, if they were made
        load_model(folder)


def test_missing_and_surplus_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.scale"] = weights.pop("head.bias")
    save_file(weights, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    _change_json(folder, weights_sha256=digest)
    with pytest.raises(ModelError, match=r"head\.bias is missing; head\.scale has no place"):
        load_model(folder)


def test_weights_exchanged_between_models_are_refused(tmp_path, folder, description):
    other = build_network(description.network, 1, 3)
    save_model(tmp_path / "other", other, description)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ModelError, match="exchanged"):
        load_model(folder)


def test_a_precision_that_is_not_to_be_had_is_a_config_error(folder):
    with pytest.raises(ConfigError, match="fp8"):
        load_model(folder, precision="fp8")
