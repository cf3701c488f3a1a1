"""How much a file can hold, and the cause in a library's message."""

import pytest

from medseg_brn.errors import DataError
from medseg_brn.volumes.image_file import check_size, reason


def test_a_file_holds_what_it_has_bytes_for(tmp_path):
    (tmp_path / "a").write_bytes(bytes(24))
    check_size(tmp_path / "a", (2, 3, 4), 1, compressed=False)
    with pytest.raises(DataError, match="announces 2x3x4 values, 48 bytes, and the file has 24 bytes"):
        check_size(tmp_path / "a", (2, 3, 4), 2, compressed=False)


def test_compression_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10))
    check_size(tmp_path / "a", (10, 1032, 1), 1, compressed=True)
    with pytest.raises(DataError, match="10330 bytes"):
        check_size(tmp_path / "a", (10, 1033, 1), 1, compressed=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError("place\n\n  cause.\n"), "cause"), (MemoryError(), "MemoryError"), (OSError("a"), "a")],
)
def test_the_cause_is_the_last_line(error, words):
    assert reason(error) == words
