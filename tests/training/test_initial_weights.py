"""Beginning with a model's weights: what is taken, what is not, and that it is told."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import Experiment, NetworkConfig, PreprocessingConfig, TrainingConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import load_network, save_model
from medseg_brn.training.initial_weights import begin_with, read_initial_model
from medseg_brn.training.state import TrainingState, make_state

CPU = torch.device("cpu")
NETWORK = NetworkConfig(channels=(4, 6, 8), deep_supervision=True)


def describe(class_names: tuple[str, ...], modalities: tuple, network: NetworkConfig) -> ModelDescription:
    return ModelDescription(
        name="earlier",
        network=network,
        class_names=class_names,
        label_values=tuple(range(len(class_names))),
        modalities=modalities,
        preprocessing=Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 1), "intensity": [{"scheme": "zscore"}] * len(modalities)}
        ),
        patch_size=(8, 8, 8),
        training={"dataset": "heads"},
    )


@pytest.fixture
def save(tmp_path):
    """Writes a model with random weights and statistics; returns its folder."""

    def write(class_names=("background", "tumour", "cyst"), modalities=("mri",), network=NETWORK) -> Path:
        torch.manual_seed(5)
        made = build_network(network, len(modalities), len(class_names))
        made(torch.randn(2, len(modalities), 8, 8, 8))
        save_model(tmp_path / "earlier", made, describe(class_names, modalities, network))
        return tmp_path / "earlier"

    return write


def start(model: Path, class_names, modalities, network=NETWORK, **training):
    """A fresh state, what it was before, and what it took from the model."""
    experiment = Experiment(network=network, training=TrainingConfig(initial_weights=str(model), **training))
    dataset = Dataset("heads", Path(), (), class_names, tuple(range(len(class_names))), modalities)
    state = make_state(experiment, len(modalities), len(class_names), CPU)
    fresh = copy.deepcopy(state.network.state_dict())
    initial = read_initial_model(experiment)
    assert initial is not None
    return state, fresh, begin_with(initial, state, dataset, network.norm)


def weights_of(state: TrainingState) -> dict[str, Tensor]:
    return dict(state.network.state_dict())


def test_the_same_network_is_taken_whole(save):
    folder = save()
    state, _, transfer = start(folder, ("background", "tumour", "cyst"), ("mri",))
    source = load_network(folder)[0].state_dict()
    assert (transfer.in_part, transfer.fresh, transfer.left) == ({}, (), ())
    assert set(transfer.whole) == set(source)
    for name, value in weights_of(state).items():
        assert value.equal(source[name]), name
    assert state.averaged is not None
    assert all(value.equal(source[name]) for name, value in state.averaged.module.state_dict().items())
    assert transfer.tell() == f"weights of earlier: {len(source)} of {len(source)} tensors"
    assert "held out here" in transfer.notes[0]


def test_structures_are_found_by_name(save):
    folder = save(("background", "tumour", "cyst"))
    state, fresh, transfer = start(folder, ("background", "vessel", "Tumour"), ("mri",))
    source = load_network(folder)[0].state_dict()
    heads = [name for name in fresh if "head" in name]
    assert len(heads) == 4  # weight and bias of the head, and of the one coarser head
    for name in heads:
        assert transfer.in_part[name] == ("background", "Tumour")
        found = weights_of(state)[name]
        assert found[0].equal(source[name][0])
        assert found[1].equal(fresh[name][1])
        assert found[2].equal(source[name][1])
    assert set(transfer.whole) == set(fresh) - set(heads)


def test_a_network_that_learnt_in_other_axes_is_refused_unless_they_are_set(save):
    folder = save()
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"crop"', '"orientation": "LPS", "crop"'))
    experiment = Experiment(network=NETWORK, training=TrainingConfig(initial_weights=str(folder)))
    with pytest.raises(ConfigError, match=r"axes LPS.*set preprocessing\.orientation=LPS"):
        read_initial_model(experiment)
    told = experiment.model_copy(update={"preprocessing": PreprocessingConfig(orientation="LPS")})
    assert read_initial_model(told) is not None


def test_no_structure_in_common_leaves_the_heads_fresh(save):
    _, fresh, transfer = start(save(("other", "tumour")), ("background", "liver"), ("mri",))
    assert set(transfer.fresh) == {name for name in fresh if "head" in name}


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_channels_are_found_by_modality_and_order(save, encoder):
    network = NetworkConfig(channels=(4, 6, 8), encoder=encoder)
    folder = save(modalities=("ct", "mri", "mri"), network=network)
    state, _, transfer = start(folder, ("background", "tumour", "cyst"), ("mri", "ct"), network)
    source = load_network(folder)[0].state_dict()
    assert list(transfer.in_part) == []
    found = weights_of(state)["stem.0.weight"]
    assert found[:, 0].equal(source["stem.0.weight"][:, 1])
    assert found[:, 1].equal(source["stem.0.weight"][:, 0])
    assert transfer.fresh == ()
    assert any("channels" in note for note in transfer.notes)


def test_channels_that_only_changed_places_are_found_too(save):
    folder = save(modalities=("ct", "mri"))
    state, _, transfer = start(folder, ("background", "tumour", "cyst"), ("mri", "ct"))
    source = load_network(folder)[0].state_dict()["stem.0.weight"]
    assert weights_of(state)["stem.0.weight"].equal(source.flip(1))
    assert "stem.0.weight" in transfer.whole


def test_a_network_for_mri_serves_ct_where_there_is_one_channel(save):
    folder = save(modalities=("mri",))
    state, _, transfer = start(folder, ("background", "tumour", "cyst"), ("ct",))
    assert weights_of(state)["stem.0.weight"].equal(load_network(folder)[0].state_dict()["stem.0.weight"])
    assert "stem.0.weight" in transfer.whole
    assert transfer.notes[-1] == "The model's channels are mri, those here ct"


def test_a_channel_that_the_model_lacks_stays_fresh(save):
    state, fresh, transfer = start(save(), ("background", "tumour", "cyst"), ("mri", "mri"))
    assert transfer.in_part == {"stem.0.weight": ("mri 1",)}
    assert weights_of(state)["stem.0.weight"][:, 1].equal(fresh["stem.0.weight"][:, 1])


def test_other_architectures_give_what_fits(save):
    wider = NetworkConfig(channels=(4, 6, 10), norm="group")
    state, fresh, transfer = start(save(), ("background", "tumour", "cyst"), ("mri",), wider)
    assert "stem.0.weight" in transfer.whole
    assert "encoder.2.0.0.weight" in transfer.fresh  # 8 and 10 channels
    assert {"stem.1.running_mean", "coarser_heads.0.bias"} <= set(transfer.left)
    assert set(transfer.whole) | set(transfer.fresh) == set(fresh)
    for name in transfer.fresh:
        assert weights_of(state)[name].equal(fresh[name]), name


def test_statistics_that_mean_something_else_stay_fresh(save):
    batch, mabn = NETWORK.model_copy(update={"norm": "batch"}), NETWORK.model_copy(update={"norm": "mabn"})
    folder = save(network=batch)
    _, _, alike = start(folder, ("background", "tumour", "cyst"), ("mri",), NETWORK)
    assert "stem.1.running_mean" in alike.whole
    assert alike.notes[-1] == "The model was trained with the norm batch, and here it is batch_renorm"
    _, _, other = start(folder, ("background", "tumour", "cyst"), ("mri",), mabn)
    assert {"stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"} <= set(other.fresh)
    assert "stem.1.weight" in other.whole


def test_sites_are_found_by_name(tmp_path):
    torch.manual_seed(5)
    network = NetworkConfig(channels=(4, 6), norm="domain_batch")
    made = build_network(network, 1, 2, ("a", "b"))
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
    described = describe(("background", "tumour"), ("mri",), NetworkConfig(channels=(4, 6)))
    sites = {"network": network, "sites": ("a", "b")}
    save_model(tmp_path / "earlier", made, described.model_copy(update=sites))
    experiment = Experiment(
        network=network, training=TrainingConfig(initial_weights=str(tmp_path / "earlier"), ema_decay=None)
    )
    state = make_state(experiment, 1, 2, CPU, ("b", "c"))
    initial = read_initial_model(experiment)
    assert initial is not None
    dataset = Dataset("heads", Path(), (), ("background", "tumour"), (0, 1), ("mri",))
    transfer = begin_with(initial, state, dataset, "domain_batch")
    found, source = state.network.state_dict(), made.state_dict()
    assert found["stem.1.domains.0.running_mean"].equal(source["stem.1.domains.1.running_mean"])
    assert found["stem.1.domains.1.running_mean"].equal(torch.zeros(4))
    assert {name for name in found if ".domains.1." in name} == set(transfer.fresh)


def test_other_filters_are_refused(save):
    folder = save(network=NETWORK.model_copy(update={"weight_standardization": False}))
    with pytest.raises(ConfigError, match=r"set network\.weight_standardization=false"):
        start(folder, ("background", "tumour", "cyst"), ("mri",), NETWORK)


def test_an_ensemble_is_refused_by_name(save, tmp_path):
    experiment = Experiment(training=TrainingConfig(initial_weights=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="does not exist"):
        read_initial_model(experiment)
    assert read_initial_model(Experiment()) is None


def test_a_run_begins_with_them_and_says_so(run_command, tiny_config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    short = ("-s", "training.steps=2", "-s", "training.validate_every=null")
    done = run_command("train", tiny_config, "-o", first, *short)
    assert done.returncode == 0, done.stderr
    frozen = (
        *("-s", f"training.initial_weights={first}", "-s", "training.ema_decay=null"),
        *("-s", "training.learning_rate_factors={stem: 0, encoder: 0.1}"),
    )
    done = run_command("train", tiny_config, "-o", second, *short, *frozen)
    assert done.returncode == 0, done.stderr
    told = json.loads((second / "initial_weights.json").read_text())
    assert told["model"] == "tiny"
    assert (told["in_part"], told["fresh"], told["left"]) == ({}, [], [])
    before, after = (load_network(run)[0].state_dict() for run in (first, second))
    for name, value in after.items():
        if "num_batches" not in name:  # which is a place in the schedule of renorm's limits
            assert value.equal(before[name]) == name.startswith("stem."), name
    description = json.loads((second / "model" / "model.json").read_text())
    assert description["training"]["initial_weights"]["model"] == "tiny"
    assert "Begun with" in (second / "report.html").read_text()
    (first / "model" / "model.json").unlink()  # a run that goes on does not need the model any more
    done = run_command("train", tiny_config, "-o", second, *short, *frozen, "--resume")
    assert done.returncode == 0, done.stderr
