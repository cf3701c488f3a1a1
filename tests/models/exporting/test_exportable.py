"""What is exported: the folded network, the trained one that it must agree with, and refusals."""

import numpy as np
import pytest
import torch

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.exporting.exportable import check_agreement, load_exportable
from medseg_brn.models.package import load_model, load_network
from medseg_brn.networks.domain_norm import set_sites


def run(network, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(image)).numpy()


def test_the_folded_network_gives_the_trained_ones_logits(save_tiny, architecture):
    folder = save_tiny(network=architecture)
    exportable = load_exportable(folder)
    trained = load_network(folder)[0].eval()
    size = [3 * step for step in trained.strides_total]
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1)).numpy()
    expected = run(trained, image)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(exportable.network, image), expected, atol=2e-5 * np.abs(expected).max())
    assert not [name for name in exportable.network.state_dict() if "running" in name or "coarser" in name]
    agreement = check_agreement(lambda image: run(exportable.network, image), exportable, "there")
    assert agreement.voxels == 56 * np.prod(exportable.strides_total)  # 2·2·2 + 2 · 3·2·4
    assert agreement.differing == 0


def test_a_network_that_disagrees_is_refused_with_the_numbers(save_tiny):
    exportable = load_exportable(save_tiny())
    with pytest.raises(ModelError, match=r"differ by 0\.5 at most.*there was not written"):
        check_agreement(lambda image: run(exportable.network, image) + np.float32(0.5), exportable, "there")
    with pytest.raises(ModelError, match="differ by nan at most"):
        check_agreement(lambda image: run(exportable.network, image) * np.nan, exportable, "there")
    with pytest.raises(ModelError, match=r"; \d+ of 448 voxels have the same label, and differences"):
        check_agreement(lambda image: run(exportable.network, image)[:, ::-1].copy(), exportable, "there")


def test_an_ensemble_is_refused_and_its_members_are_named(save_tiny, tmp_path):
    save_ensemble(tmp_path / "both", [save_tiny("one", 1), save_tiny("other", 2)])
    with pytest.raises(
        ModelError, match=r"both is an ensemble of 2 models.*export each member, as in .*both/members/0"
    ):
        load_exportable(tmp_path / "both")
    assert load_exportable(tmp_path / "both" / "members" / "1").description.name == "tiny"


def test_a_model_calibrated_for_int8_is_refused(save_tiny):
    folder = save_tiny(activation_ranges={"stem.0.input": (0.0, 1.0)})
    with pytest.raises(ModelError, match=r"calibrated for int8.*export the model that it was quantized from"):
        load_exportable(folder)


def test_a_site_takes_its_own_statistics_and_none_the_mixture(save_tiny):
    network = {"channels": (4, 6), "norm": "domain_batch", "momentum": 0.5}
    folder = save_tiny(network=network, sites=("A", "B"))
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    logits = {site: run(load_exportable(folder, site).network, image) for site in ("A", "B", None)}
    trained = load_network(folder)[0].eval()
    set_sites(trained, ("B",))
    expected = run(trained, image)
    np.testing.assert_allclose(logits["B"], expected, atol=2e-5 * np.abs(expected).max())
    mixture = run(load_model(folder, "cpu", "fp32").members[0].predictor.network, image)
    np.testing.assert_allclose(logits[None], mixture, atol=2e-5 * np.abs(mixture).max())
    assert np.abs(logits["A"] - logits["B"]).max() > 0.1 < np.abs(logits["A"] - logits[None]).max()


def test_a_site_that_the_model_does_not_know_is_refused(save_tiny):
    sites = save_tiny("sites", network={"channels": (4, 6), "norm": "domain_batch"}, sites=("A", "B"))
    with pytest.raises(ConfigError, match=r"Site 'C' was asked for.*of the sites A, B; name one of them"):
        load_exportable(sites, "C")
    with pytest.raises(ConfigError, match=r"Site 'C' was asked for.*the same statistics.*leave out --site"):
        load_exportable(save_tiny(), "C")
