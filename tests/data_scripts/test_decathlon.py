"""`data_scripts/decathlon.py` as a person runs it, against a server in this process."""

import hashlib
import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

TASK = "Task04_Hippocampus"
FILES = {
    f"{TASK}/dataset.json": b'{"labels": {"0": "background", "1": "Anterior"}}',
    f"{TASK}/imagesTr/hippocampus_001.nii.gz": bytes(range(256)) * 2000,
    f"{TASK}/labelsTr/hippocampus_001.nii.gz": b"label map",
}


def tar_of(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def archive(server) -> bytes:
    content = tar_of(FILES)
    server.put(f"{TASK}.tar", content)
    return content


@pytest.fixture
def fetch(run_script, server, tmp_path):
    def fetch(*arguments, task=TASK):
        return run_script("decathlon.py", task, "-o", tmp_path / "data", "--url", server.url, *arguments)

    return fetch


def assert_one_message(result, *parts: str) -> None:
    assert result.returncode == 1, result.stderr
    message = result.stderr.strip()
    assert message.startswith("decathlon.py: ") and "Traceback" not in message
    for part in parts:
        assert part in message


def test_a_task_is_downloaded_verified_recorded_and_unpacked(fetch, archive, tmp_path) -> None:
    result = fetch("--sha256", sha256(archive).upper())
    assert result.returncode == 0, result.stderr
    assert sha256(archive) in result.stdout and str(tmp_path / "data" / TASK) in result.stdout
    record = f"{sha256(archive)}  {TASK}.tar\n".encode()
    assert contents(tmp_path / "data") == {**FILES, f"{TASK}.tar.sha256": record}


def test_what_is_there_is_not_downloaded_again(fetch, archive, server) -> None:
    fetch("--sha256", sha256(archive))
    server.handler.ranges_asked.clear()
    result = fetch("--sha256", sha256(archive))
    assert result.returncode == 0 and "is there already" in result.stdout
    assert server.handler.ranges_asked == []


def test_another_checksum_is_refused_and_nothing_is_left(fetch, archive, tmp_path) -> None:
    assert_one_message(fetch("--sha256", "0" * 64), sha256(archive), "0" * 64, "SHA-256")
    assert contents(tmp_path / "data") == {}


def test_without_a_sha256_the_published_md5_is_compared(fetch, archive, tmp_path) -> None:
    found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    assert_one_message(fetch(), found, "9d24dba78a72977dbd1d2e110310f31b", "MD5")
    assert contents(tmp_path / "data") == {}


def test_a_recorded_sha256_is_compared_at_a_later_download(fetch, archive, server, tmp_path) -> None:
    record = tmp_path / "data" / f"{TASK}.tar.sha256"
    record.parent.mkdir()
    record.write_text(f"{sha256(archive)}  {TASK}.tar\n")
    server.put(f"{TASK}.tar", tar_of({**FILES, f"{TASK}/extra": b"changed"}))
    assert_one_message(fetch(), sha256(archive), "SHA-256")
    server.put(f"{TASK}.tar", archive)
    assert fetch().returncode == 0


@pytest.mark.parametrize("text", ["", "\n", "not a checksum\n"])
def test_a_record_without_a_sha256_is_told(fetch, archive, tmp_path, text) -> None:
    record = tmp_path / "data" / f"{TASK}.tar.sha256"
    record.parent.mkdir()
    record.write_text(text)
    assert_one_message(fetch(), f"{TASK}.tar.sha256 holds no SHA-256", "remove the file")
    assert fetch("--sha256", sha256(archive)).returncode == 0
    assert record.read_text().startswith(sha256(archive))


def test_an_interrupted_download_continues_where_it_stopped(fetch, archive, server, tmp_path) -> None:
    server.handler.breaks_off_after = 100_000
    result = fetch("--sha256", sha256(archive))
    assert_one_message(result, "100,000", f"{len(archive):,}", "Run the same command again")
    assert (tmp_path / "data" / f"{TASK}.tar.part").read_bytes() == archive[:100_000]
    server.handler.breaks_off_after = None
    assert fetch("--sha256", sha256(archive)).returncode == 0
    assert server.handler.ranges_asked == [None, "bytes=100000-"]
    assert contents(tmp_path / "data" / TASK) == {name.split("/", 1)[1]: v for name, v in FILES.items()}


@pytest.mark.parametrize("kept", [100_000, None], ids=["part", "whole"])
def test_a_server_without_ranges_starts_over(fetch, archive, server, tmp_path, kept) -> None:
    server.handler.knows_ranges = False
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{TASK}.tar.part").write_bytes(archive[:kept])
    assert fetch("--sha256", sha256(archive)).returncode == 0


@pytest.mark.parametrize("extra", [b"", b"and more"], ids=["whole", "too long"])
def test_a_partial_file_that_is_not_shorter_is_kept_or_replaced(
    fetch, archive, server, tmp_path, extra
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{TASK}.tar.part").write_bytes(archive + extra)
    assert fetch("--sha256", sha256(archive)).returncode == 0
    assert len(server.handler.ranges_asked) == (2 if extra else 1)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tar_of({**FILES, f"{TASK}/../../escaped": b"!"}), f"{TASK}/../../escaped"),
        (tar_of({**FILES, "../escaped": b"!"}), "../escaped"),
        (tar_of({**FILES, "/tmp/escaped": b"!"}), "/tmp/escaped"),
        (tar_of({**FILES, "Task05_Prostate/dataset.json": b"!"}), "Task05_Prostate/dataset.json"),
        (tar_of(FILES, link(f"{TASK}/link", "/etc/passwd", tarfile.SYMTYPE)), f"{TASK}/link"),
        (tar_of(FILES, link(f"{TASK}/link", f"{TASK}/dataset.json", tarfile.LNKTYPE)), f"{TASK}/link"),
        (tar_of(FILES, link(f"{TASK}/pipe", "", tarfile.FIFOTYPE)), f"{TASK}/pipe"),
    ],
    ids=["up from inside", "up", "absolute", "another task", "symbolic link", "hard link", "pipe"],
)
def test_an_archive_that_reaches_outside_is_refused_whole(fetch, server, tmp_path, content, named) -> None:
    server.put(f"{TASK}.tar", content)
    assert_one_message(fetch("--sha256", sha256(content)), f"'{named}'", "nothing of it is unpacked")
    left = {f"{TASK}.tar", f"{TASK}.tar.sha256"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == left
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_what_is_no_archive_is_told(fetch, server, tmp_path) -> None:
    server.put(f"{TASK}.tar", b"<html>Sign in to the hospital network</html>")
    result = fetch("--sha256", sha256(b"<html>Sign in to the hospital network</html>"))
    assert_one_message(result, f"{TASK}.tar cannot be unpacked")
    assert not (tmp_path / "data" / TASK).exists()


def test_a_truncated_archive_leaves_no_folder(fetch, server, archive, tmp_path) -> None:
    server.put(f"{TASK}.tar", archive[:300_000])
    assert_one_message(fetch("--sha256", sha256(archive[:300_000])), "cannot be unpacked")
    assert not (tmp_path / "data" / TASK).exists()


def test_files_that_macos_adds_are_left_out(fetch, server, tmp_path) -> None:
    content = tar_of(
        {**FILES, f"{TASK}/imagesTr/._hippocampus_001.nii.gz": b"finder", f"._{TASK}": b"finder"}
    )
    server.put(f"{TASK}.tar", content)
    assert fetch("--sha256", sha256(content)).returncode == 0
    assert contents(tmp_path / "data" / TASK) == {name.split("/", 1)[1]: v for name, v in FILES.items()}


def test_a_server_that_refuses_or_is_absent_is_told(fetch, run_script, server, tmp_path) -> None:
    assert_one_message(fetch(), f"{server.url}/{TASK}.tar answers 404")
    nobody = run_script("decathlon.py", TASK, "-o", tmp_path / "data", "--url", "http://127.0.0.1:9")
    assert_one_message(nobody, "http://127.0.0.1:9/Task04_Hippocampus.tar cannot be downloaded", "refused")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["Task99_Toe"], ["'Task99_Toe'", "Task04_Hippocampus"]),
        ([TASK, "--sha256", "abc"], ["abc", "64 hexadecimal digits"]),
        ([TASK, "--url", "ftp://host"], ["ftp://host", "https://"]),
    ],
)
def test_wrong_options_are_told(run_script, tmp_path, arguments, parts) -> None:
    assert_one_message(run_script("decathlon.py", *arguments, "-o", tmp_path / "data"), *parts)
    assert not (tmp_path / "data").exists()


def test_help_teaches(run_script) -> None:
    text = run_script("decathlon.py", "--help").stdout
    for part in (TASK, "Task10_Colon", "CC-BY-SA", "continues where it stopped", "--sha256"):
        assert part in text


@pytest.mark.slow  # importing MONAI
def test_the_digests_are_those_that_monai_publishes() -> None:
    from monai.apps import DecathlonDataset

    path = Path(__file__).parents[2] / "data_scripts" / "decathlon.py"
    spec = importlib.util.spec_from_file_location("decathlon", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert DecathlonDataset.md5 == script.PUBLISHED_MD5
    assert {task: f"{script.BUCKET}/{task}.tar" for task in script.PUBLISHED_MD5} == DecathlonDataset.resource
