"""Models with statistics of each site: saved, loaded for a site or for any, averaged, and run on a cohort."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.inputs import InputCase, find_inputs
from medseg_brn.models.architecture import build_network
from medseg_brn.models.calibration import save_calibrated
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import load_model, load_models_by_site, load_network, save_model
from medseg_brn.models.segmenter import ModelSegmenter
from medseg_brn.networks.domain_norm import set_sites, take_site
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


def describe(base: ModelDescription, sites) -> ModelDescription:
    changes = {"network": NetworkConfig(channels=(4, 6), norm="domain_batch"), "sites": sites}
    return ModelDescription.model_validate({**dict(base), **changes})


def save(folder: Path, base: ModelDescription, sites, seed: int = 0) -> Path:
    """A model with random weights, and statistics that differ from site to site."""
    torch.manual_seed(seed)
    described = describe(base, sites)
    network = build_network(described.network, 1, 3, sites)
    for number, site in enumerate(sites):
        for _ in range(40):
            set_sites(network, [site, site])
            network(torch.randn(2, 1, 8, 8, 8) * (1 + 2 * number) + number)
    save_model(folder, network, described)
    return folder


@pytest.fixture
def scan() -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (8, 8, 8)).astype(np.float32)
    return Volume(array, Grid((8, 8, 8), np.diag([1.0, 1.0, 2.0, 1.0])))


def probabilities(model, scan: Volume) -> np.ndarray:
    return model.predict(scan, probabilities=True)[1]


def test_a_scan_is_segmented_by_its_sites_network_or_the_mixture(tmp_path, description, scan):
    folder = save(tmp_path / "model", description, ("a", "b"))
    assert json.loads((folder / "model.json").read_text())["sites"] == ["a", "b"]
    network, _ = load_network(folder)
    network.eval()
    image = torch.from_numpy((scan.array - scan.array.mean()) / scan.array.std())[None, None]
    models = load_models_by_site(folder, "cpu")
    assert list(models) == [None, "a", "b"] and models["a"].sites == ("a", "b")
    for site, model in models.items():
        with torch.no_grad():
            expected = take_site(network, site)(image).softmax(1)[0].numpy()
        np.testing.assert_allclose(
            probabilities(load_model(folder, "cpu", "fp32", site), scan), expected, atol=1e-4
        )
        assert model.method_note is None, "evaluated exactly"
    assert not np.allclose(probabilities(models["a"], scan), probabilities(models["b"], scan), atol=1e-2)
    assert "statistics of the sites a, b" in (models[None].site_note or "")


def test_a_site_that_the_model_does_not_have_is_told_with_those_that_it_has(tmp_path, description, network):
    folder = save(tmp_path / "model", description, ("a", "b"))
    with pytest.raises(
        ConfigError, match=r"Site 'c' was asked for, .* statistics of the sites a, b; name one"
    ):
        load_model(folder, "cpu", site="c")
    save_model(tmp_path / "plain", network, description)
    assert "sites" not in json.loads((tmp_path / "plain" / "model.json").read_text())
    assert load_model(tmp_path / "plain").site_note is None
    with pytest.raises(ConfigError, match="the same statistics for all sites; name no site"):
        load_model(tmp_path / "plain", "cpu", site="a")


@pytest.mark.parametrize(
    ("norm", "sites"), [("domain_batch", ()), ("domain_batch", ("a", "a")), ("batch_renorm", ("a",))]
)
def test_sites_and_norm_agree_in_a_description(description, norm, sites):
    changes = {"network": NetworkConfig(norm=norm), "sites": sites}
    with pytest.raises(ValidationError, match=f"network.norm is {norm}; domain_batch has sites"):
        ModelDescription.model_validate({**dict(description), **changes})


def test_weights_of_other_sites_do_not_fit(tmp_path, description):
    folder = save(tmp_path / "model", description, ("a", "b"))
    plain = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(plain | {"sites": ["a", "b", "c"]}))
    with pytest.raises(ModelError, match="do not fit its described architecture"):
        load_model(folder)


def test_members_of_an_ensemble_have_their_own_sites(tmp_path, description, scan):
    """As leaving one site out makes them: of a member without the site, the mixture is taken."""
    first = save(tmp_path / "first", description, ("a", "b"))
    second = save(tmp_path / "second", description, ("b", "c"), seed=1)
    save_ensemble(tmp_path / "both", [first, second])
    model = load_model(tmp_path / "both", "cpu", "fp32", "a")
    assert model.sites == ("a", "b", "c")
    expected = (
        probabilities(load_model(first, "cpu", "fp32", "a"), scan)
        + probabilities(load_model(second, "cpu", "fp32"), scan)
    ) / 2
    np.testing.assert_allclose(probabilities(model, scan), expected, atol=1e-5)


def test_eight_bits_would_need_a_range_for_each_site(tmp_path, description):
    folder = save(tmp_path / "model", description, ("a", "b"))
    with pytest.raises(ConfigError, match=r"statistics of each scan's site \(norm domain_batch\)"):
        save_calibrated(tmp_path / "int8", folder, [tmp_path])


def test_cases_of_a_manifest_get_their_own_sites_and_a_given_one_goes_before(tmp_path, description, scan):
    folder = save(tmp_path / "model", description, ("a", "b"))
    write_volume(scan, tmp_path / "scan.nii.gz")
    rows = [f"p{number},scan.nii.gz,{site}" for number, site in enumerate(("a", "b", "elsewhere", ""))]
    (tmp_path / "cohort.csv").write_text("\n".join(["case,image,site", *rows]))
    segmenter = ModelSegmenter(folder, device="cpu", precision="fp32")
    cases = find_inputs([tmp_path / "cohort.csv"], 1).cases
    assert [case.site for case in segmenter.choose_sites(cases)] == ["a", "b", None, None]
    assert [case.site for case in segmenter.choose_sites(cases, "b")] == ["b"] * 4
    with pytest.raises(ConfigError, match="Site 'north' was asked for"):
        segmenter.choose_sites(cases, "north")
    for case in segmenter.choose_sites(cases):
        found = segmenter.segment(segmenter.read(case), None).prediction
        expected = load_model(folder, "cpu", "fp32", case.site).predict(tmp_path / "scan.nii.gz")
        assert np.array_equal(found.label_map.array, expected.array)


def test_a_model_without_sites_takes_no_notice_of_a_manifests(tmp_path, description, network):
    save_model(tmp_path / "model", network, description)
    segmenter = ModelSegmenter(tmp_path / "model")
    case = InputCase("p", (tmp_path / "scan.nii",), "p.nii", "a")
    assert segmenter.choose_sites([case])[0].site is None
