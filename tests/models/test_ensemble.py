"""Ensembles: the mean of what their members say, each with its own preprocessing, and only of a kind."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import medseg_brn as ms
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import InferenceConfig, NetworkConfig
from medseg_brn.errors import ModelError
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import EnsembleDescription, read_description
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid, Volume

SHAPE = (13, 11, 9)


def _preprocessing(mean=0.0, std=100.0, **changes) -> Preprocessing:
    intensity = [{"scheme": "ct", "low": -500, "high": 500, "mean": mean, "std": std}]
    return Preprocessing.model_validate({"spacing_mm": (1, 1, 1), "intensity": intensity, **changes})


@pytest.fixture
def save(tmp_path, description):
    """A function that saves a model of random weights and returns its folder."""

    def save(name: str, seed: int, **changes):
        options = {"modalities": ("ct",), "preprocessing": _preprocessing(), **changes}
        own = description.model_copy(update=options)
        torch.manual_seed(seed)
        network = build_network(own.network, own.in_channels, own.num_classes)
        for _ in range(2):
            network(torch.randn(2, own.in_channels, 8, 8, 8))
        save_model(tmp_path / name, network, own)
        return tmp_path / name

    return save


@pytest.fixture
def ensemble(tmp_path, save):
    save_ensemble(tmp_path / "both", [save("a", 0), save("b", 1)])
    return tmp_path / "both"


def _scan() -> Volume:
    array = np.random.default_rng(0).normal(20, 150, SHAPE).astype(np.float32)
    return Volume(array, Grid(SHAPE, np.eye(4)))


def _probabilities(folder, **options) -> np.ndarray:
    return load_model(folder, "cpu", "fp32").predict(_scan(), probabilities=True, **options)[1]


def _change(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _read(folder) -> EnsembleDescription:
    found = read_description(folder / "model.json")
    assert isinstance(found, EnsembleDescription)
    return found


def test_probabilities_are_the_mean_of_the_networks_own(tmp_path, save):
    """From the scan's voxels on by hand: clip, shift, scale, network, softmax, mean."""
    constants = [(0.0, 100.0), (40.0, 60.0), (-10.0, 200.0)]
    folders = [save(f"fold{n}", n, preprocessing=_preprocessing(*pair)) for n, pair in enumerate(constants)]
    save_ensemble(tmp_path / "all", folders)
    expected = np.zeros((3, *SHAPE))
    for folder, (mean, std) in zip(folders, constants, strict=True):
        image = (_scan().array.clip(-500, 500) - mean) / std
        padded = np.pad(image, [(0, size % 2) for size in SHAPE])
        with torch.no_grad():
            logits = load_network(folder)[0].eval()(torch.from_numpy(padded)[None, None])[0]
        x, y, z = SHAPE
        expected += logits.softmax(0)[:, :x, :y, :z].numpy() / 3
    np.testing.assert_allclose(_probabilities(tmp_path / "all"), expected, atol=1e-5)
    label_map = ms.load_model(tmp_path / "all", "cpu", "fp32").predict(_scan())
    np.testing.assert_array_equal(label_map.array, np.array([0, 2, 500])[expected.argmax(0)])


PAIRS = {
    "another depth": ("batch_renorm", {"network": NetworkConfig(channels=(4, 6, 8))}),
    "other strides": (
        "batch_renorm",
        {"network": NetworkConfig(channels=(4, 6), strides=((1, 1, 1), (4, 2, 1)))},
    ),
    "one level": ("batch_renorm", {"network": NetworkConfig(channels=(5,))}),
    "exact and windows": ("batch_renorm", {"network": NetworkConfig(channels=(4, 6), norm="instance")}),
    "windows of two sizes": (
        "instance",
        {"network": NetworkConfig(channels=(4, 6), norm="instance"), "patch_size": (6, 10, 8)},
    ),
    "windows beyond the scan": (
        "instance",
        {"network": NetworkConfig(channels=(4, 6), norm="group"), "patch_size": (16, 16, 16)},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_members_of_different_architectures_are_averaged(tmp_path, save, name):
    norm, changes = PAIRS[name]
    one = save("one", 0, network=NetworkConfig(channels=(4, 6), norm=norm))
    other = save("other", 1, **changes)
    save_ensemble(tmp_path / "both", [one, other])
    exact = "windows" not in name  # where one member takes windows, all do
    overlap = {} if exact else {"overlap": 0.5}
    expected = (_probabilities(one, **overlap) + _probabilities(other, **overlap)) / 2
    assert abs(_probabilities(one, **overlap) - expected).max() > 0.01
    np.testing.assert_allclose(_probabilities(tmp_path / "both"), expected, atol=1e-5)
    assert (load_model(tmp_path / "both").method_note is None) == exact


@pytest.mark.parametrize("mirror_axes", [(), (0,)])
def test_each_member_is_planned_within_its_share_of_the_memory(tmp_path, save, mirror_axes):
    deep = NetworkConfig(channels=(8, 12, 16), encoder_blocks=3)
    save_ensemble(tmp_path / "both", [save("a", 0), save("b", 1, network=deep)])
    predictors = [member.predictor for member in load_model(tmp_path / "both", "cpu", "fp32").members]
    images = [np.random.default_rng(seed).normal(size=(1, 45, 33, 38)).astype(np.float32) for seed in (0, 1)]
    occupied = np.ones((6, 5, 5), bool)
    occupied[0] = False

    def compute(chosen, budget_bytes):
        options = Options(
            mirror_axes=mirror_axes, budget_bytes=budget_bytes, occupied=occupied, block=(8, 8, 8)
        )
        with Scratch() as scratch:
            scores = compute_scores(
                [predictors[n] for n in chosen], [images[n] for n in chosen], options, scratch
            )
            return np.concatenate(list(scores.slabs), axis=1), scores

    budget = 2e6 * 2 ** len(mirror_axes)
    found, scores = compute((0, 1), budget)
    assert scores.predicted_bytes <= budget
    tiles = re.findall(r"in tiles of (\d+)×", scores.plan)
    assert len(set(tiles)) == 2  # slabs of different thickness, made to fit
    expected = (compute((0,), 1e12)[0] + compute((1,), 1e12)[0]) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found[0, :8] == 1).all()


def test_windows_of_different_sizes_are_counted_together(tmp_path, save):
    save_ensemble(tmp_path / "both", [save("a", 0), save("b", 1, patch_size=(4, 8, 8))])
    told = []
    model = load_model(tmp_path / "both", "cpu", "fp32")
    model.predict(_scan(), overlap=0.0, progress=lambda done, total: told.append((done, total)))
    # 13 x 11 x 9 voxels: 2 x 2 x 2 windows of 8 x 8 x 8 and 4 x 2 x 2 of 4 x 8 x 8.
    assert {total for _, total in told} == {24}
    counts = [done for done, _ in told]
    assert counts == sorted(counts)
    assert counts[-1] == 24


def test_mirroring_and_post_processing_of_the_ensemble_are_used(tmp_path, save):
    settings = InferenceConfig.model_validate(
        {"mirror_axes": (0, 2), "postprocessing": {"cyst": {"remove_below_mm3": 1e6}}}
    )
    folders = [save("a", 0, inference=settings), save("b", 1, inference=settings)]
    save_ensemble(tmp_path / "both", folders)
    expected = (_probabilities(folders[0]) + _probabilities(folders[1])) / 2
    np.testing.assert_allclose(_probabilities(tmp_path / "both"), expected, atol=1e-5)
    assert abs(_probabilities(tmp_path / "both", mirror_axes=()) - expected).max() > 1e-4
    label_map = load_model(tmp_path / "both", "cpu", "fp32").predict(_scan())
    assert (expected.argmax(0) == 2).any()
    np.testing.assert_array_equal(np.unique(label_map.array), [0])


def test_the_description_is_what_the_members_share_and_who_they_are(tmp_path, save):
    folders = [save("a", 0, training={"fold": 0}), save("b", 1, training={"fold": 1})]
    save_ensemble(tmp_path / "both", folders)
    found = load_model(tmp_path / "both").description
    assert (found.name, found.licence, found.in_channels, found.num_classes) == ("tiny", "CC-BY-4.0", 1, 3)
    assert (found.class_names, found.label_values) == (("background", "tumour", "cyst"), (0, 2, 500))
    assert [member.training for member in found.members] == [{"fold": 0}, {"fold": 1}]
    sums = [load_network(folder)[1].weights_sha256 for folder in folders]
    assert [member.weights_sha256 for member in found.members] == sums
    for number, folder in enumerate(folders):
        for file in ("model.json", "model.safetensors"):
            copied = tmp_path / "both" / "members" / str(number) / file
            assert copied.read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ((None, None), None),
        (("CC-BY-4.0", None), "CC-BY-4.0; unknown"),
        (("CC-BY-4.0", "CC0-1.0"), "CC-BY-4.0; CC0-1.0"),
    ],
)
def test_licences_that_differ_all_hold(tmp_path, save, licences, expected):
    folders = [save(str(seed), seed, licence=licence) for seed, licence in enumerate(licences)]
    save_ensemble(tmp_path / "both", folders, name="of two")
    assert (_read(tmp_path / "both").licence, _read(tmp_path / "both").name) == (expected, "of two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_names": ("background", "cyst", "tumour")},
            r"class_names is \('background', 'cyst', 'tumour'\)",
        ),
        ({"label_values": (0, 1, 2)}, r"label_values is \(0, 1, 2\) in .*other and \(0, 2, 500\) in .*one"),
        ({"modalities": ("mri",)}, r"modalities is \('mri',\) in .*other and \('ct',\) in .*one"),
        ({"preprocessing": _preprocessing(spacing_mm=(1, 1, 2))}, r"spacing_mm is \(1\.0, 1\.0, 2\.0\) in"),
        ({"preprocessing": _preprocessing(crop="body")}, "crop is body in .*other and none in .*one"),
        ({"preprocessing": _preprocessing(intensity=[{"scheme": "none"}])}, r"scheme is \('none',\) in"),
    ],
)
def test_members_that_do_not_belong_together_are_refused(tmp_path, save, changes, message):
    folders = [save("one", 0), save("other", 1, **changes)]
    with pytest.raises(
        ModelError, match=rf"cannot be averaged: .*{message}.*; combine models trained on one"
    ):
        save_ensemble(tmp_path / "both", folders)
    assert not (tmp_path / "both").exists()


def test_inference_settings_that_differ_must_be_chosen(tmp_path, save):
    mirrored = InferenceConfig(mirror_axes=(0,))
    folders = [save("one", 0), save("other", 1, inference=mirrored)]
    with pytest.raises(
        ModelError, match=r"mirror_axes is \(0,\) in .*other and \(\) in .*one, .*inference-of"
    ):
        save_ensemble(tmp_path / "both", folders)
    save_ensemble(tmp_path / "both", folders, inference=mirrored)
    assert _read(tmp_path / "both").inference == mirrored
    unknown = InferenceConfig.model_validate({"postprocessing": {"liver": {}}})
    with pytest.raises(ModelError, match=r"make no ensemble: .*'liver'"):
        save_ensemble(tmp_path / "both", folders, inference=unknown)


def test_fewer_than_two_members_are_refused(tmp_path, save):
    with pytest.raises(ModelError, match="two members or more, and none was given"):
        save_ensemble(tmp_path / "both", [])
    with pytest.raises(ModelError, match=r"two members or more, and .*one was given"):
        save_ensemble(tmp_path / "both", [save("one", 0)])


def test_the_same_weights_twice_are_refused(tmp_path, save):
    one = save("one", 0)
    shutil.copytree(one, tmp_path / "copy")
    for again in (one, tmp_path / "copy"):
        with pytest.raises(ModelError, match=rf"one and {again} hold the same weights \(SHA-256 \w{{64}}\)"):
            save_ensemble(tmp_path / "both", [one, save("other", 1), again])


def test_a_damaged_model_is_not_combined(tmp_path, save):
    folders = [save("one", 0), save("other", 1)]
    path = folders[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"other/model\.safetensors is damaged"):
        save_ensemble(tmp_path / "both", folders)
    assert not (tmp_path / "both").exists()


def test_an_ensemble_is_no_single_network_and_no_member(tmp_path, save, ensemble):
    message = r"both is an ensemble of 2 models, .*as in .*both/members/0, or load them all with load_model"
    with pytest.raises(ModelError, match=message):
        load_network(ensemble)
    with pytest.raises(ModelError, match=message):
        save_ensemble(tmp_path / "more", [ensemble, save("c", 2)])
    again = load_network(ensemble / "members" / "0")[0].state_dict()
    expected = load_network(tmp_path / "a")[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_saving_replaces_a_model_but_nothing_else_and_no_member(tmp_path, save, ensemble):
    save_ensemble(ensemble, [save("c", 2), save("d", 3)], name="newer")
    assert load_model(ensemble).description.name == "newer"
    with pytest.raises(ModelError, match=r"both holds the member .*both/members/0, .*choose another"):
        save_ensemble(ensemble, [ensemble / "members" / "0", tmp_path / "a"])
    with pytest.raises(ModelError, match="holds files that are no model"):
        save_ensemble(tmp_path, [tmp_path / "a", tmp_path / "b"])
    assert load_model(ensemble).description.name == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "both", "c", "d"]


def test_a_damaged_member_is_found(ensemble):
    path = ensemble / "members" / "1" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"members/1/model\.safetensors is damaged or was exchanged"):
        load_model(ensemble)


def test_a_member_that_was_exchanged_or_is_missing_is_found(ensemble, save):
    member = ensemble / "members" / "1"
    shutil.rmtree(member)
    with pytest.raises(ModelError, match=r"lacks its member .*members/1"):
        load_model(ensemble)
    shutil.copytree(save("another", 5), member)
    with pytest.raises(ModelError, match=r"members/1 was exchanged: .*SHA-256 \w{64}, and .* says \w{64}"):
        load_model(ensemble)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model.json", {"label_values": [0, 1, 2]}, r"label_values is \(0, 1, 2\) in .*both and"),
        (
            "members/1/model.json",
            {"preprocessing": _preprocessing(spacing_mm=(1, 1, 3)).as_dict()},
            r"spacing_mm is \(1\.0, 1\.0, 3\.0\) in .*members/1 and",
        ),
    ],
)
def test_descriptions_that_no_longer_belong_together_are_found(ensemble, file, changes, message):
    _change(ensemble / file, **changes)
    with pytest.raises(ModelError, match=f"do not belong together: .*{message}"):
        load_model(ensemble)


@pytest.mark.parametrize("name", ["../../a", "..", ".", "", "a/b", "a\\b", "/etc", "0\n", "C:"])
def test_a_member_s_folder_cannot_lead_elsewhere(ensemble, name):
    members = json.loads((ensemble / "model.json").read_text())["members"]
    _change(ensemble / "model.json", members=[members[0] | {"folder": name}, members[1]])
    with pytest.raises(ModelError, match=r"is damaged: members\.0\.folder: String should match pattern"):
        load_model(ensemble)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folder": "0"}, "members repeat a folder: 0, 0"),
        ({"weights_sha256": "f"}, "members repeat a weights_sha256: f, f"),
        ({"execute": "rm"}, r"members\.0\.execute: Extra inputs are not permitted"),
    ],
)
def test_a_list_of_members_that_is_none(ensemble, fields, message):
    members = json.loads((ensemble / "model.json").read_text())["members"]
    _change(ensemble / "model.json", members=[member | fields for member in members])
    with pytest.raises(ModelError, match=message):
        load_model(ensemble)
    _change(ensemble / "model.json", members=members[:1])
    with pytest.raises(ModelError, match="members: Tuple should have at least 2 items"):
        load_model(ensemble)
