"""Hostile files: each is refused with one message, nothing of it is executed, and nothing of it stays."""

import gzip
import hashlib
import json
import pickle
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medseg_brn.errors import MedsegError, ModelError
from medseg_brn.models.package import load_model
from medseg_brn.models.pull import pull_model

GIGA = 1_000_000_000


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@dataclass
class Maker:
    """What hostile files are made of."""

    files: dict[str, bytes]
    zip_of: Callable[..., bytes]
    tar_of: Callable[..., bytes]
    canary: Path

    @property
    def pickle(self) -> bytes:
        return pickle.dumps(Payload(self.canary))

    def with_weights(self, weights: bytes) -> bytes:
        """A zip of the model with other weights, whose checksum is right."""
        return self.with_description(weights_sha256=hashlib.sha256(weights).hexdigest(), weights=weights)

    def with_description(self, weights: bytes | None = None, **changes) -> bytes:
        plain = json.loads(self.files["model.json"]) | changes
        given = self.files if weights is None else {"model.safetensors": weights}
        return self.zip_of({**given, "model.json": json.dumps(plain).encode()})

    def with_network(self, **changes) -> bytes:
        return self.with_description(network=json.loads(self.files["model.json"])["network"] | changes)

    def with_member(self, name: str, kind: bytes, target: str = "", size: int = 0) -> bytes:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, target, size
        return self.tar_of(self.files, member)


@pytest.fixture
def maker(files, zip_of, tar_of, tmp_path) -> Maker:
    return Maker(files, zip_of, tar_of, tmp_path / "executed")


def _symlink_in_zip(maker: Maker) -> bytes:
    entry = zipfile.ZipInfo("LICENSE")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return maker.zip_of({**maker.files, entry: b"/etc/passwd"})


def _change_directory(content: bytes, offset: int, form: str, value: int) -> bytes:
    """Overwrite a field of the last entry in a zip's central directory."""
    changed = bytearray(content)
    struct.pack_into(form, changed, content.rindex(b"PK\x01\x02") + offset, value)
    return bytes(changed)


def _bad_size(maker: Maker, size: int) -> bytes:
    """A tar whose header has a size in base 256, which can be negative."""
    block = bytearray(tarfile.TarInfo("model.json").tobuf())
    block[124:136] = (
        b"\xff" * 4 + struct.pack(">q", size) if size < 0 else b"\x80\0\0\0" + struct.pack(">q", size)
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return gzip.compress(bytes(block) + bytes(1024))


def _with_long_header(maker: Maker) -> bytes:
    """A tar whose extended header says that it is 8 GB long; readers fetch it whole."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 8 * GIGA
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


def _with_long_directory(maker: Maker) -> bytes:
    """A zip of many entries: its directory is read whole before the first of them."""
    return maker.zip_of({f"members/{number:060}/model.json": b"" for number in range(3000)})


ARCHIVES: dict[str, tuple[Callable[[Maker], bytes], str]] = {
    "zip that climbs": (
        lambda m: m.zip_of({**m.files, "../up.json": b"x"}),
        "'../up.json', which reaches outside",
    ),
    "zip that climbs from inside": (
        lambda m: m.zip_of({**m.files, "members/../../model.json": b"x"}),
        "reaches outside",
    ),
    "zip with an absolute path": (lambda m: m.zip_of({**m.files, "/etc/cron.d/x": b"x"}), "'/etc/cron.d/x'"),
    "zip with Windows paths": (lambda m: m.zip_of({**m.files, "..\\up.json": b"x"}), "reaches outside"),
    "zip with a drive": (lambda m: m.zip_of({**m.files, "C:model.json": b"x"}), "reaches outside"),
    "zip with a link": (_symlink_in_zip, "'LICENSE', which is a link or a device"),
    "zip with a pickle": (
        lambda m: m.zip_of({**m.files, "model.pkl": m.pickle}),
        "'model.pkl', which is no part",
    ),
    "zip with a module": (
        lambda m: m.zip_of({**m.files, "model.py": b"1/0"}),
        "'model.py', which is no part",
    ),
    "zip with a hidden file": (
        lambda m: m.zip_of({**m.files, ".bashrc": b"x"}),
        "'.bashrc', which is no part",
    ),
    "zip with a name that commands terminals": (
        lambda m: m.zip_of({**m.files, "\x1b[2Jx": b"x"}),
        r"'\x1b[2Jx', which is no part",
    ),
    "zip with a file twice": (
        lambda m: m.zip_of({zipfile.ZipInfo("model.json"): b"{}", **m.files}),
        "'model.json' twice",
    ),
    "zip of two models": (
        lambda m: m.zip_of({f"{root}/{name}": data for root in "ab" for name, data in m.files.items()}),
        "files of several folders",
    ),
    "zip bomb": (
        lambda m: _change_directory(m.zip_of({**m.files, "README": b"x"}), 24, "<I", 2**32 - 2),
        "unpacks to more than 4 GB: 'README' alone has 4,294,967,294 bytes",
    ),
    "zip that unpacks to more than it says": (
        lambda m: _change_directory(m.zip_of({**m.files, "README": bytes(10**7)}), 24, "<I", 10),
        "it is damaged, or no .zip or .tar.gz archive: Bad CRC-32",
    ),
    "zip of another compression": (
        lambda m: m.zip_of(m.files, zipfile.ZIP_BZIP2),
        "packed by another method than deflate",
    ),
    "zip with a password": (
        lambda m: _change_directory(m.zip_of({**m.files, "README": b"x"}), 8, "<H", 1),
        "cannot be unpacked",
    ),
    "zip with a long directory": (_with_long_directory, "a header of"),
    "truncated zip": (lambda m: m.zip_of(m.files)[:-30], "it is damaged, or no .zip"),
    "tar that climbs": (
        lambda m: m.tar_of({**m.files, "../up.json": b"x"}),
        "'../up.json', which reaches outside",
    ),
    "tar with an absolute path": (lambda m: m.tar_of({**m.files, "/up.json": b"x"}), "'/up.json'"),
    "tar with a symbolic link": (
        lambda m: m.with_member("LICENSE", tarfile.SYMTYPE, "/etc/passwd"),
        "'LICENSE', which is a link or a device",
    ),
    "tar with a hard link": (
        lambda m: m.with_member("LICENSE", tarfile.LNKTYPE, "/etc/passwd"),
        "'LICENSE', which is a link or a device",
    ),
    "tar with a pipe": (
        lambda m: m.with_member("README", tarfile.FIFOTYPE),
        "'README', which is a link or a device",
    ),
    "tar with a module": (lambda m: m.tar_of({**m.files, "x/__init__.py": b"1/0"}), "'x/__init__.py'"),
    "tar bomb": (lambda m: _bad_size(m, 9 * GIGA), "unpacks to more than 4 GB"),
    "tar of a negative size": (lambda m: _bad_size(m, -512), "'model.json' alone has -512 bytes"),
    "tar with a gigantic header": (_with_long_header, "a header of 8,000,000,000 bytes"),
    "truncated tar": (lambda m: m.tar_of(m.files)[:-200], "it is damaged, or no .zip or .tar.gz"),
    "empty tar": (lambda m: m.tar_of({}), "holds no model.json"),
    "gzip of a pickle": (lambda m: gzip.compress(m.pickle), "it is damaged, or no .zip or .tar.gz"),
    "pickle for an archive": (
        lambda m: m.pickle,
        "it is damaged, or no .zip or .tar.gz archive: it begins with",
    ),
    "page for an archive": (lambda m: b"<html>Sign in</html>", "it begins with b'<htm'"),
    "nothing for an archive": (lambda m: b"", "it begins with b''"),
    "weights that were exchanged": (
        lambda m: m.zip_of({**m.files, "model.safetensors": m.pickle}),
        "is damaged or was exchanged",
    ),
    "pickle for weights": (lambda m: m.with_weights(m.pickle), "model.safetensors cannot be read"),
    "PyTorch file for weights": (
        lambda m: m.with_weights(m.zip_of({"archive/data.pkl": m.pickle})),
        "model.safetensors cannot be read",
    ),
    "truncated weights": (
        lambda m: m.with_weights(m.files["model.safetensors"][:-40]),
        "model.safetensors cannot be read",
    ),
    "weights with a gigantic header": (
        lambda m: m.with_weights(struct.pack("<Q", 2**60) + b"{}"),
        "model.safetensors cannot be read",
    ),
    "weights that lie outside of their file": (
        lambda m: m.with_weights(
            _safetensors({"head.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
        ),
        "model.safetensors cannot be read",
    ),
    "terabytes of channels": (lambda m: m.with_network(channels=[10**6, 10**6]), "do not fit"),
    "channels beyond all integers": (lambda m: m.with_network(channels=[10**30, 4]), "describes no network"),
    "kernels beyond all integers": (
        lambda m: m.with_network(kernels=[[10**12 + 1] * 3, [3] * 3]),
        "describes no network",
    ),
    "billions of blocks": (lambda m: m.with_network(encoder_blocks=10**9), "a network of 2000000003 blocks"),
    "millions of levels": (lambda m: m.with_network(channels=[1] * 10**6), "blocks, and 1000 are the most"),
    "description without end": (
        lambda m: m.zip_of({**m.files, "model.json": b" " * (1 << 24) + m.files["model.json"]}),
        "and 16,777,216 are the most",
    ),
    "description nested without end": (
        lambda m: m.zip_of({**m.files, "model.json": b"[" * 100_000}),
        "cannot be read as JSON",
    ),
    "target to instantiate": (lambda m: m.with_description(_target_="os.system"), "_target_: Extra inputs"),
    "member outside of the ensemble": (
        lambda m: m.zip_of({"model.json": json.dumps(_ensemble(m, "../../tiny")).encode()}),
        "members.0.folder",
    ),
    "ensemble in an ensemble": (
        lambda m: m.zip_of(
            {"model.json": (inner := json.dumps(_ensemble(m, "a")).encode()), "members/a/model.json": inner}
        ),
        "is an ensemble of 2 models",
    ),
}


def _safetensors(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def _ensemble(maker: Maker, folder: str) -> dict:
    plain = json.loads(maker.files["model.json"])
    shared = {name: plain[name] for name in ("name", "class_names", "label_values", "modalities")}
    members = [{"folder": one, "name": one, "weights_sha256": one} for one in (folder, "b")]
    return {"format": "medseg_brn ensemble", "format_version": 1, **shared, "members": members}


@pytest.mark.parametrize(("make", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_it_is_refused_and_leaves_nothing(tmp_path, own_models, maker, make, message):
    archive = tmp_path / "hostile.zip"
    archive.write_bytes(make(maker))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        pull_model(str(archive))
    told = str(caught.value)
    assert told.startswith(f"{archive} was refused, and nothing of it is kept: ")
    assert "\n" not in told
    assert told.isprintable()
    assert len(told) < 1000
    assert sorted(path for path in tmp_path.rglob("*") if path != own_models) == before
    assert list(own_models.iterdir()) == []
    assert not maker.canary.exists()


def test_the_same_archives_without_malice_are_taken(tmp_path, own_models, maker):
    for name, content in (("a.zip", maker.zip_of(maker.files)), ("b.tar.gz", maker.tar_of(maker.files))):
        (tmp_path / name).write_bytes(content)
        pull_model(str(tmp_path / name))
    assert sorted(path.name for path in own_models.iterdir()) == ["a", "b"]


def test_the_payload_would_have_been_seen(maker):
    pickle.loads(maker.pickle)  # noqa: S301
    assert maker.canary.exists()


def test_foreign_files_in_a_model_folder_are_never_read(model_folder, maker):
    for name in ("model.pkl", "model.pt", "__init__.py", "sitecustomize.py", "members"):
        (model_folder / name).write_bytes(maker.pickle)
    assert load_model(model_folder).description.name == "tiny"
    assert not maker.canary.exists()


def test_a_file_server_that_never_stops_fills_no_disk(server, own_models, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("medseg_brn.models.pull.MOST_PACKED_BYTES", 10_000_000)
    server.put("endless.zip", b"")
    server.handler.never_ends = True
    with pytest.raises(MedsegError, match=r"longer than the 0\.01 GB that are allowed"):
        pull_model(f"{server.url}/endless.zip")
    assert list(own_models.iterdir()) == []
