"""Bringing models here: from archives, folders and servers, checked, and with a name."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.names import find_model_folder
from medseg_brn.models.package import load_model, save_model
from medseg_brn.models.pull import pull_model


@pytest.fixture(autouse=True)
def _surroundings(own_models, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_zip_from_a_server_becomes_a_named_model(server, own_models, zip_of, files):
    content = zip_of({f"anything/{name}": data for name, data in files.items()})
    server.put("v1/Liver-CT.zip?raw=1", content)
    told = []
    pulled = pull_model(f"{server.url}/v1/Liver-CT.zip?raw=1", progress=lambda *done: told.append(done))
    assert (pulled.name, pulled.folder, pulled.sha256) == (
        "liver-ct",
        own_models / "liver-ct",
        sha256(content),
    )
    assert pulled.description.name == "tiny"
    assert told[-1] == (len(content), len(content))
    assert [path.name for path in own_models.iterdir()] == ["liver-ct"]
    assert contents(find_model_folder("liver-ct")) == files


def test_a_tar_of_an_ensemble_on_disk(tmp_path, own_models, tar_of, model_folder, network, description):
    network.head.bias.data += 1
    save_model(tmp_path / "other", network, description)
    save_ensemble(tmp_path / "both", [model_folder, tmp_path / "other"])
    files = contents(tmp_path / "both") | {"README.md": b"hello", "LICENSE": b"CC0"}
    finder = {"./._model.json": b"finder", "./.DS_Store": b"finder"}
    archive = tmp_path / "both.tar.gz"
    archive.write_bytes(tar_of({f"./{name}": data for name, data in files.items()} | finder))
    for source, name in ((str(archive), "one"), (archive.as_uri(), "two")):
        pulled = pull_model(source, name=name, sha256=sha256(archive.read_bytes()).upper())
        assert contents(pulled.folder) == files
        assert len(load_model(name).members) == 2
    assert archive.is_file()
    assert sorted(path.name for path in own_models.iterdir()) == ["one", "two"]


def test_a_run_gets_a_name_and_leaves_the_rest_of_its_folder(tmp_path, own_models, model_folder, files):
    run = tmp_path / "my_run"
    shutil.copytree(model_folder, run / "model")
    (run / "config.yaml").write_text("a: 1")
    (run / "model" / "notes.py").write_text("raise SystemExit")
    (run / "model" / "members" / "x").mkdir(parents=True)
    (run / "model" / "members" / "x" / "model.pkl").write_bytes(b"\x80\x04.")
    pulled = pull_model(str(run))
    assert (pulled.name, pulled.sha256, contents(own_models / "my_run")) == ("my_run", None, files)


def test_a_lost_connection_keeps_what_came_and_the_next_call_goes_on(server, own_models, zip_of, files):
    content = zip_of(files)
    server.put("tiny.zip", content)
    server.handler.breaks_off_after = 1000
    with pytest.raises(DataError, match="Run the same command again to continue"):
        pull_model(f"{server.url}/tiny.zip")
    (partial,) = own_models.iterdir()
    assert partial.name.startswith(".")
    assert partial.read_bytes() == content[:1000]
    server.handler.breaks_off_after = None
    assert pull_model(f"{server.url}/tiny.zip").sha256 == sha256(content)
    assert server.handler.ranges_asked == [None, "bytes=1000-"]
    assert [path.name for path in own_models.iterdir()] == ["tiny"]


def test_a_download_is_not_continued_with_that_of_another_address(server, own_models, zip_of, files):
    server.put("a/tiny.zip", b"x" * 5000)
    server.put("b/tiny.zip", zip_of(files))
    server.handler.breaks_off_after = 1000
    with pytest.raises(DataError):
        pull_model(f"{server.url}/a/tiny.zip")
    server.handler.breaks_off_after = None
    assert contents(pull_model(f"{server.url}/b/tiny.zip").folder) == files


@pytest.mark.parametrize("way", ["option", "fragment"])
def test_another_checksum_than_the_given_one_is_refused(server, own_models, zip_of, files, way):
    content = zip_of(files)
    server.put("tiny.zip", content)
    wrong = "0" * 64
    source = f"{server.url}/tiny.zip" + (f"#sha256={wrong}" if way == "fragment" else "")
    with pytest.raises(ModelError, match=f"SHA-256 {sha256(content)}, and {wrong} is expected"):
        pull_model(source, sha256=wrong if way == "option" else None)
    assert list(own_models.iterdir()) == []
    pull_model(f"{server.url}/tiny.zip#sha256={sha256(content)}")
    assert [path.name for path in own_models.iterdir()] == ["tiny"]


def test_a_name_that_is_taken_is_told_before_anything_is_downloaded(server, own_models, zip_of, files):
    server.put("tiny.zip", zip_of(files))
    pull_model(f"{server.url}/tiny.zip")
    with pytest.raises(ModelError, match=r"'tiny' is there already: remove .*tiny, or choose another --name"):
        pull_model(f"{server.url}/tiny.zip")
    assert len(server.handler.ranges_asked) == 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("http://example.org/tiny.zip", {}, "anyone could exchange the file"),
        ("ftp://example.org/tiny.zip", {}, "anyone could exchange the file"),
        ("file://elsewhere/tiny.zip", {}, "anyone could exchange the file"),
        ("http://[::1/tiny.zip", {}, r"'http://\[::1/tiny.zip' is no address"),
        ("nowhere/tiny.zip", {}, r"nowhere/tiny\.zip does not exist"),
        (".", {"name": "../up"}, r"'\.\./up' is no name .*choose another --name"),
        ("https://example.org/My%20Model.zip", {}, r"'my model' is no name .*one with --name"),
        ("https://example.org/..%2f..%2fup.zip", {}, r"'\.\./\.\./up' is no name"),
        ("https://example.org/", {"sha256": "abc"}, "'abc' is no SHA-256"),
        ("https://example.org/a.zip#sha256=" + "0" * 64, {"sha256": "1" * 64}, "Two checksums were given"),
        ("hf:someone/liver", {"sha256": "0" * 64}, "no archive and has none"),
    ],
)
def test_what_is_no_source_name_or_checksum_is_told(own_models, source, options, message):
    with pytest.raises(ConfigError, match=message):
        pull_model(source, **options)
    assert not own_models.exists()


def test_the_hub_without_its_library_says_what_to_install(own_models, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'pip install "medseg-brn\[hub\]"'):
        pull_model("hf:someone/liver@main")
    assert list(own_models.iterdir()) == []
