"""Models by name: what a path or a name means, and what is told where it means nothing."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import medseg_brn as ms
from medseg_brn.errors import ModelError
from medseg_brn.models import names
from medseg_brn.models.names import NAME, find_model_folder, list_named_models, shipped_folder, user_folder


def test_a_name_is_taken_wherever_a_path_is(own_models, model_folder):
    shutil.copytree(model_folder, own_models / "liver-ct.v2")
    assert find_model_folder("liver-ct.v2") == own_models / "liver-ct.v2"
    assert find_model_folder(Path("liver-ct.v2")) == own_models / "liver-ct.v2"
    assert ms.load_model("liver-ct.v2").description.name == "tiny"


def test_a_model_at_the_path_wins_over_the_name(tmp_path, own_models, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, own_models / "liver")
    shutil.copytree(model_folder, tmp_path / "liver" / "model")
    assert find_model_folder("liver") == Path("liver/model")


def test_a_folder_that_hides_a_name_is_told(tmp_path, own_models, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, own_models / "liver")
    (tmp_path / "liver").mkdir()
    with pytest.raises(
        ModelError, match=r"No model at liver: neither .*hides the model of this name: rename"
    ):
        find_model_folder("liver")


def test_an_unknown_name_tells_the_known_ones_and_how_others_come(own_models, model_folder):
    shutil.copytree(model_folder, own_models / "hippocampus")
    with pytest.raises(ModelError, match=r"'hipocampus'.*nearest is hippocampus\).*models pull SOURCE"):
        find_model_folder("hipocampus")
    with pytest.raises(ModelError, match=r"runs/none: it does not exist; give a run folder"):
        find_model_folder("runs/none")


def test_only_finished_models_with_a_good_name_are_listed(own_models, model_folder):
    for name in ("b", "a", ".unfinished-a", "My Model"):
        shutil.copytree(model_folder, own_models / name)
    (own_models / "empty").mkdir()
    own = [model for model in list_named_models() if not model.is_shipped]
    assert [(model.name, model.folder) for model in own] == [("a", own_models / "a"), ("b", own_models / "b")]


def test_no_own_model_takes_the_place_of_a_shipped_one(tmp_path, own_models, model_folder, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "shipped" / "liver")
    shutil.copytree(model_folder, own_models / "liver")
    monkeypatch.setattr(names, "shipped_folder", lambda: tmp_path / "shipped")
    (found,) = list_named_models()
    assert (found.name, found.folder, found.is_shipped) == ("liver", tmp_path / "shipped" / "liver", True)
    assert find_model_folder("liver") == tmp_path / "shipped" / "liver"


def test_every_shipped_folder_is_a_whole_model_with_a_card_a_licence_and_a_place_in_the_wheel():
    shipped = [model for model in list_named_models() if model.is_shipped]
    assert {path.name for path in shipped_folder().iterdir() if path.is_dir()} == {
        one.name for one in shipped
    }
    for model in shipped:
        description = ms.load_model(model.folder).description
        assert description.card is not None
        assert description.licence
        assert sum(path.stat().st_size for path in model.folder.rglob("*")) <= 12_000_000


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.local/share/medseg_brn/models"),
        ("linux", {"XDG_DATA_HOME": "data"}, "data/medseg_brn/models"),
        ("darwin", {}, "home/Library/Application Support/medseg_brn/models"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/medseg_brn/models"),
        ("linux", {"XDG_DATA_HOME": "data", "MEDSEG_BRN_MODELS": "mine"}, "mine"),
    ],
)
def test_the_users_folder_is_where_the_system_has_data(monkeypatch, platform, variables, expected):
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA", "MEDSEG_BRN_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "home"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert user_folder() == Path(expected)


@given(st.text(alphabet="aA0.-_/\\: ~\0é", max_size=12))
def test_a_name_stays_in_its_folder(text):
    if NAME.fullmatch(text):
        assert Path("models", text).parent == Path("models")
        assert not text.startswith((".", "-", "_"))
        assert text == text.lower()
