"""Bringing a model here from elsewhere: an archive, a folder, or a repository of the Hugging Face Hub.

What arrives is checked before it gets its name: checksum, names of files, sizes, description, weights.
Nothing of it is executed, and of what is refused nothing stays.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.models.archive import MOST_PACKED_BYTES, SUFFIXES, copy_model, unpack_model
from medseg_brn.models.description import Description
from medseg_brn.models.names import (
    DESCRIPTION_NAME,
    NAME,
    NAME_RULE,
    find_model_folder,
    list_named_models,
    user_folder,
)
from medseg_brn.models.package import verify_model
from medseg_brn.volumes.atomic import atomic_path
from medseg_brn.volumes.download import SHA256, compute_sha256, download

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and, where known, the bytes in all."""

HUB_PREFIX = "hf:"
FRAGMENT = "#sha256="
# Who listens on this machine's own addresses can exchange files in easier ways.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Pulled:
    """A model that was brought here.

    Attributes:
        name: by which commands take it.
        folder: where it is.
        sha256: of the archive it came in; None where it came in a folder.
        description: of the model.
    """

    name: str
    folder: Path
    sha256: str | None
    description: Description


def pull_model(
    source: str,
    *,
    name: str | None = None,
    sha256: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Pulled:
    """Bring a model to the user's folder, checked, whole or not at all.

    Args:
        source: address (https) or path of a `.zip` or `.tar.gz` archive with a model folder; path of a model
            or run folder; `hf:OWNER/REPOSITORY` or `hf:OWNER/REPOSITORY@REVISION`. To an archive's,
            `#sha256=HEX` may be added.
        name: what it is called here; by default as its file, folder or repository.
        sha256: what the archive's must be.
        progress: told of a download.

    Raises:
        ConfigError: a source, name or checksum that is none.
        DataError: the download fails; what has arrived of it is kept and continued by the same call.
        ModelError: the name is taken; or what arrived is not what was expected, or no model.
    """
    source, expected = _split_checksum(source, sha256)
    address, path = _locate(source)
    name = _choose_name(name, source)
    target = user_folder() / name
    _check_free(name, target)
    if address is None and (path is None or path.is_dir()):
        if expected is not None:
            raise ConfigError(
                f"A SHA-256 was given for {source}, which is no archive and has none; its description holds "
                "those of its weights, and hf:OWNER/REPOSITORY@COMMIT names one state of a repository"
            )
        with _as_folder(source, path) as folder:
            description = _place(target, source, lambda place: copy_model(folder, place))
        return Pulled(name, target, None, description)
    with _as_file(address, path, progress) as archive:
        found = _check_checksum(archive, expected, source)
        description = _place(target, source, lambda place: unpack_model(archive, place))
    return Pulled(name, target, found, description)


def _split_checksum(source: str, given: str | None) -> tuple[str, str | None]:
    """Return the source without its checksum, and the checksum that was given in either way."""
    source, _, fragment = source.partition(FRAGMENT)
    expected = given or fragment or None
    if expected is not None and not SHA256.fullmatch(expected):
        raise ConfigError(f"{expected!r} is no SHA-256, which has 64 hexadecimal digits")
    if given and fragment and given.lower() != fragment.lower():
        raise ConfigError(f"Two checksums were given, {given} and {fragment}; give the one you trust")
    return source, expected and expected.lower()


def _locate(source: str) -> tuple[str | None, Path | None]:
    """Return an address or a path; neither for a repository.

    Raises:
        ConfigError: an address that is not https, or a path where nothing is.
    """
    if source.startswith(HUB_PREFIX):
        return None, None
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise ConfigError(f"{source!r} is no address: {error}") from None
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return source, None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = Path(url2pathname(parts.path))
    elif "://" in source:
        raise ConfigError(
            f"{source} is not taken: on its way anyone could exchange the file; give an https address, a "
            f"path, or {HUB_PREFIX}OWNER/REPOSITORY"
        )
    else:
        path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; give an https address, a path, or {HUB_PREFIX}OWNER/REPOSITORY"
        )
    return None, path


def _choose_name(given: str | None, source: str) -> str:
    name = given or _last_part(source)
    if NAME.fullmatch(name):
        return name
    remedy = "choose another --name" if given else "choose one with --name"
    raise ConfigError(f"{name!r} is no name for a model, which is made of {NAME_RULE}; {remedy}")


def _last_part(source: str) -> str:
    """Return the name of the file, folder or repository, without suffixes, in small letters."""
    source = re.sub(r"[?#].*", "", source) if "://" in source else source
    if source.startswith(HUB_PREFIX):
        source = source.partition("@")[0]
    last = unquote(re.split(r"[/\\:]", source.rstrip("/\\"))[-1]).lower()
    return next((last.removesuffix(suffix) for suffix in SUFFIXES if last.endswith(suffix)), last)


def _check_free(name: str, target: Path) -> None:
    if any(known.name == name and known.is_shipped for known in list_named_models()):
        raise ModelError(f"A model {name!r} comes with the package; choose another --name")
    if target.exists():
        raise ModelError(f"A model {name!r} is there already: remove {target}, or choose another --name")


@contextmanager
def _as_file(address: str | None, path: Path | None, progress: Progress) -> Iterator[Path]:
    """Give the archive's file; a downloaded one is removed afterwards."""
    if address is None:
        assert path is not None
        yield path
        return
    # Of this address alone, so that no other one's download is continued with it.
    archive = user_folder() / f".{hashlib.sha256(address.encode()).hexdigest()[:16]}.archive"
    download(address, archive, progress, check="the address", most_bytes=MOST_PACKED_BYTES)
    try:
        yield archive
    finally:
        archive.unlink()


@contextmanager
def _as_folder(source: str, path: Path | None) -> Iterator[Path]:
    """Give the model's folder; that of a repository is removed afterwards."""
    if path is not None:
        yield find_model_folder(path)
        return
    user_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=user_folder()) as folder:
        _fetch_repository(source, Path(folder))
        yield Path(folder)


def _fetch_repository(source: str, folder: Path) -> None:
    """Download the model's files of a repository of the Hugging Face Hub."""
    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f'{source} takes the package huggingface_hub: pip install "medseg-brn[hub]"'
        ) from None
    wanted = ["model.json", "model.safetensors", "members/*/model.*", "README.md", "LICENSE*"]
    try:
        snapshot_download(repository, revision=revision or None, local_dir=folder, allow_patterns=wanted)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source} cannot be downloaded: {reason}") from None
    if not (folder / DESCRIPTION_NAME).is_file():
        raise ModelError(f"{source} holds no {DESCRIPTION_NAME}, so it is no model of this toolkit")


def _check_checksum(archive: Path, expected: str | None, source: str) -> str:
    if archive.stat().st_size > MOST_PACKED_BYTES:
        raise ModelError(f"{source} is longer than the {MOST_PACKED_BYTES / 1e9:g} GB that are allowed")
    found = compute_sha256(archive)
    if expected not in (None, found):
        raise ModelError(
            f"{source} has the SHA-256 {found}, and {expected} is expected: it is damaged, or was changed; "
            "nothing of it is kept"
        )
    return found


def _place(target: Path, source: str, fill: Callable[[Path], None]) -> Description:
    """Make a folder, fill it, verify the model in it, and give it its name."""
    with atomic_path(target) as temporary:
        try:
            fill(temporary)
            return verify_model(temporary)
        except ModelError as error:
            told = str(error).replace(f"{temporary}", target.name)
            raise ModelError(f"{source} was refused, and nothing of it is kept: {told}") from None
