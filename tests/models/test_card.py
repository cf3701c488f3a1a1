"""The card, the colours and the figures of a model: written, read, and left out where there are none."""

import json

import pytest
import torch
from pydantic import ValidationError

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ModelError
from medseg_brn.models.card import NORMALIZATION_REASONS, Card, ExpectedScans, TrainingData
from medseg_brn.models.describing import save_with_card
from medseg_brn.models.description import read_description
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.models.quality import ClassQuality, read_quality

CARD = Card(
    summary="Tumours and cysts of phantoms.",
    training_data=(TrainingData(name="Phantoms", cases=8, licence="CC0", attribution="nobody"),),
    expected_scans=ExpectedScans(body_part="head", spacing_mm=(0.8, 1.2)),
    limits=("Knows no real head.",),
)


def test_a_card_comes_back_and_the_weights_stay(tmp_path, model_folder):
    save_with_card(
        tmp_path / "shared", model_folder, CARD, name="phantom", licence="CC0", colours=("#ff0000", "#00ff00")
    )
    _, found = load_network(tmp_path / "shared")
    assert (found.card, found.name, found.licence) == (CARD, "phantom", "CC0")
    assert found.colours == ("#ff0000", "#00ff00")
    weights = [folder / "model.safetensors" for folder in (model_folder, tmp_path / "shared")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    before = read_description(model_folder / "model.json")
    assert (
        found.model_copy(update={"card": None, "name": "tiny", "licence": "CC-BY-4.0", "colours": ()})
        == before
    )


def test_an_ensemble_has_a_card_too(tmp_path, model_folder, network, description):
    with torch.no_grad():
        network.head.bias += 1
    save_model(tmp_path / "other", network, description)
    save_ensemble(tmp_path / "both", [model_folder, tmp_path / "other"])
    save_with_card(tmp_path / "shared", tmp_path / "both", CARD)
    model = load_model(tmp_path / "shared")
    assert (model.description.card, len(model.members)) == (CARD, 2)
    assert model.description.licence == "CC-BY-4.0"


def test_a_description_without_card_and_colours_is_as_it_always_was(model_folder):
    # Version 1 of the format stays 1: what was added may be absent, and then is.
    plain = json.loads((model_folder / "model.json").read_text())
    assert not {"card", "colours"} & plain.keys()
    assert plain["format_version"] == 1
    found = read_description(model_folder / "model.json")
    assert (found.card, found.colours) == (None, ())


def test_a_field_of_the_future_says_what_to_do(model_folder):
    plain = json.loads((model_folder / "model.json").read_text())
    (model_folder / "model.json").write_text(json.dumps(plain | {"mood": "good"}))
    with pytest.raises(ModelError, match=r"mood: Extra inputs .*if a newer medseg_brn wrote it, upgrade"):
        read_description(model_folder / "model.json")


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        (("#ff0000",), "1 colours but 2 classes besides the background"),
        (("#ff0000", "green"), r"colours\.1: .*got 'green'"),
        (("#ff0000", "#00FF00; x"), r"colours\.1"),
    ],
)
def test_colours_are_one_a_class_and_nothing_else(tmp_path, model_folder, colours, message):
    with pytest.raises(ModelError, match=message):
        save_with_card(tmp_path / "shared", model_folder, CARD, colours=colours)
    assert not (tmp_path / "shared").exists()


def test_a_card_is_checked():
    with pytest.raises(ValidationError, match="from a greater to a lesser edge"):
        ExpectedScans(spacing_mm=(2, 1))
    with pytest.raises(ValidationError, match="cases"):
        TrainingData(name="none", cases=0)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Card.model_validate({"summary": "x", "run": "rm"})


def test_every_norm_has_a_reason():
    assert set(NORMALIZATION_REASONS) == set(NetworkConfig.model_fields["norm"].annotation.__args__)


def _summary(cases: int, absent: int = 0) -> dict:
    one = {"dice_mean": 0.9, "dice_sd": 0.05, "hd95_mm_mean": 1.5, "missed": 0, "absent": absent}
    return {
        "dice_mean": 0.9,
        "dice_interval_95": [0.88, 0.92],
        "cases": cases,
        "tolerance_mm": 1.0,
        "classes": {"tumour": one, "cyst": one | {"dice_interval_95": [0.85, 0.95]}},
    }


def test_figures_are_those_of_all_cases_out_of_fold():
    crossed = {"folds": 5, "cases": 20, "out_of_fold": _summary(20, absent=3), "meaning": "of single models"}
    found = read_quality({"validation": _summary(4), "cross_validation": crossed})
    assert (found.cases, found.dice_mean, found.dice_interval_95) == (20, 0.9, (0.88, 0.92))
    assert "20 cases" in found.measured_on
    assert "5 folds" in found.measured_on
    assert found.meaning == "of single models"
    assert found.classes == (
        ClassQuality("tumour", 0.9, 0.05, None, 17),
        ClassQuality("cyst", 0.9, 0.05, (0.85, 0.95), 17),
    )


def test_figures_of_a_single_run_are_those_of_its_validation():
    found = read_quality({"validation": _summary(4)})
    assert (found.measured_on, found.cases) == ("of 4 held-out cases", 4)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"validation": None},
        {"validation": "good"},
        {"validation": {"dice_mean": [1]}},
        {"cross_validation": 1},
    ],
)
def test_what_says_nothing_of_quality_is_none(training):
    assert read_quality(training) is None
