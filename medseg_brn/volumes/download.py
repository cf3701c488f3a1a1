"""Downloads that go on where they were interrupted, and the checksums that tell what arrived."""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from medseg_brn.errors import DataError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60

SHA256 = re.compile(r"[0-9a-fA-F]{64}")

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and, where known, the bytes in all."""


def download(url: str, path: Path, progress: Progress, *, check: str, most_bytes: int | None = None) -> None:
    """Brings a file to `path`, unless it is there, continuing the `.part` of an earlier attempt.

    A redirect must lead to https, or stay on the host that was asked.

    Args:
        url: https or http.
        path: where to; the unfinished download lies beside it, and stays there when the network fails.
        progress: told of every piece that arrives.
        check: what to look at where the server refuses, for the message.
        most_bytes: a longer file is not brought, nor what was received of it kept.

    Raises:
        DataError: the server cannot be reached, refuses, stops before the end, redirects elsewhere, or sends
            more than is allowed.
    """
    if path.is_file():
        return
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        total = _receive(url, partial, progress, most_bytes)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url} answers {error.code} {error.reason}; check {check}.") from None
    except (http.client.InvalidURL, UnicodeError) as error:
        raise DataError(f"{url!r} is no address: {error}; check {check}.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url} cannot be downloaded: {reason}. Run the same command again to continue."
        ) from None
    received = partial.stat().st_size
    if total is not None and received != total:
        raise DataError(
            f"{url} ended after {received:,} of {total:,} bytes. Run the same command again to continue."
        )
    partial.replace(path)


def compute_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(url: str, partial: Path, progress: Progress, most_bytes: int | None) -> int | None:
    """Appends what is missing to the partial file; returns the size that the whole file should have."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(SafeRedirects).open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if not (have and error.code == 416):
            raise
        # Nothing lies beyond what we have: it is whole, or longer than the file is, and then of no use.
        total = _total_bytes(error.headers.get("Content-Range"))
        if total == have:
            return total
        partial.unlink()
        return _receive(url, partial, progress, most_bytes)
    with response:
        continues = response.status == 206
        total = _total_bytes(response.headers.get("Content-Range")) if continues else response.length
        have = have if continues else 0
        try:
            with partial.open("ab" if continues else "wb") as file:
                _copy(response, file, have, total, progress, most_bytes, url)
        except DataError:
            partial.unlink()
            raise
    return total


def _copy(
    response: IO[bytes], file: IO[bytes], have: int, total: int | None,
    progress: Progress, most_bytes: int | None, url: str,
) -> None:  # fmt: skip
    """Writes what the server sends behind the `have` bytes; it may send more than it announced."""
    done, announced = have, total or 0
    while True:
        if most_bytes is not None and max(done, announced) > most_bytes:
            raise DataError(
                f"{url} is longer than the {most_bytes / 1e9:g} GB that are allowed; nothing of it is kept."
            )
        chunk = response.read(CHUNK_BYTES)
        if not chunk:
            return
        file.write(chunk)
        done += len(chunk)
        progress(done, total)


def _total_bytes(content_range: str | None) -> int | None:
    """The 1000 of "bytes 200-999/1000" or "bytes */1000"."""
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to https, or within its own host, and nowhere else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request that follows, as urllib makes it."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and (old.scheme, old.hostname) != (new.scheme, new.hostname):
            raise DataError(
                f"{req.full_url} leads to {newurl}, which is neither https nor on the same host, so that "
                "anyone on the way could exchange the file; ask for an https address."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)
