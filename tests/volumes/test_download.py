"""Downloads: whole, continued, bounded, and led nowhere else."""

import hashlib
import urllib.request

import pytest

from medseg_brn.errors import DataError
from medseg_brn.volumes.download import SafeRedirects, compute_sha256, download

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def bring(server, tmp_path, monkeypatch):
    """A function that downloads FILE into the empty folder `here`, and tells what its progress was."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server.put("file", CONTENT)

    def bring(url=None, **options):
        told = []
        place = tmp_path / "here" / "file"
        download(url or f"{server.url}/file", place, lambda *done: told.append(done), check="it", **options)
        assert [path.name for path in place.parent.iterdir()] == ["file"]
        assert place.read_bytes() == CONTENT
        return told

    return bring


def _left(tmp_path) -> list[str]:
    return [path.name for path in (tmp_path / "here").iterdir()]


def test_a_file_comes_whole(bring, tmp_path):
    assert bring()[-1] == (len(CONTENT), len(CONTENT))
    assert compute_sha256(tmp_path / "here" / "file") == hashlib.sha256(CONTENT).hexdigest()


def test_an_interrupted_download_goes_on_where_it_stopped(bring, server, tmp_path):
    server.handler.breaks_off_after = 300_000
    with pytest.raises(DataError, match=r"300,000 of 1,024,000 bytes.*Run the same command again"):
        bring()
    assert _left(tmp_path) == ["file.part"]
    server.handler.breaks_off_after = None
    bring()
    assert server.handler.ranges_asked == [None, "bytes=300000-"]


def test_a_server_without_ranges_begins_anew(bring, server, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file.part").write_bytes(b"something else")
    server.handler.knows_ranges = False
    bring()


def test_more_than_is_allowed_is_refused_before_and_while_it_comes(bring, server, tmp_path):
    with pytest.raises(DataError, match=r"longer than the 0\.001 GB"):
        bring(most_bytes=1_000_000)
    assert _left(tmp_path) == []
    server.handler.never_ends = True
    with pytest.raises(DataError, match=r"longer than the 0\.003 GB"):
        bring(most_bytes=3_000_000)
    assert _left(tmp_path) == []


def test_a_refusal_names_what_to_check(bring, server):
    with pytest.raises(DataError, match=r"/none answers 404 .*; check it\."):
        bring(f"{server.url}/none")


@pytest.mark.parametrize("path", ["a b", "é", "a\nb"])
def test_what_is_no_address_is_told(bring, server, path):
    with pytest.raises(DataError, match=r"is no address: .*; check it\."):
        bring(f"{server.url}/{path}")


def test_redirects_within_the_host_are_followed(bring, server):
    server.handler.redirects["/old"] = f"{server.url}/file"
    bring(f"{server.url}/old")


@pytest.mark.parametrize(
    "target", ["http://localhost:{port}/file", "ftp://127.0.0.1/file", "file:///etc/passwd"]
)
def test_redirects_elsewhere_are_refused(bring, server, target):
    server.handler.redirects["/old"] = target.format(port=server.url.rsplit(":", 1)[1])
    with pytest.raises(
        DataError, match=r"neither https nor on the same host|cannot be downloaded|answers 302"
    ):
        bring(f"{server.url}/old")


@pytest.mark.parametrize(
    ("old", "new", "followed"),
    [
        ("https://a.org/x", "https://b.org/x", True),
        ("http://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "http://b.org/x", False),
        ("http://127.0.0.1/x", "http://b.org/x", False),
    ],
)
def test_nothing_leads_from_https_to_http(old, new, followed):
    request = urllib.request.Request(old)
    if followed:
        assert SafeRedirects().redirect_request(request, None, 302, "", {}, new).full_url == new
    else:
        with pytest.raises(DataError, match="neither https nor on the same host"):
            SafeRedirects().redirect_request(request, None, 302, "", {}, new)
