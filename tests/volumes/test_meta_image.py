"""What a MetaImage header says about its data."""

import pytest

from medseg_brn.errors import DataError
from medseg_brn.volumes.meta_image import check_meta_data, read_meta_header

HEADER = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"


def test_local_data_begins_after_the_last_line(tmp_path):
    path = tmp_path / "a.mha"
    path.write_text(f"{HEADER}ElementDataFile = LOCAL\n12345678")
    header = read_meta_header(path)
    assert header.data_path == path
    assert header.held_bytes == 8
    check_meta_data(path, header, 8)
    with pytest.raises(DataError, match=r"announces 9 bytes of voxels and .* holds 8"):
        check_meta_data(path, header, 9)


def test_compressed_data_has_the_size_the_header_says(tmp_path):
    path = tmp_path / "a.mha"
    path.write_text(f"{HEADER}CompressedData = True\nCompressedDataSize = 4\nElementDataFile = LOCAL\n123")
    with pytest.raises(DataError, match=r"announces 4 bytes of voxels and .* holds 3"):
        check_meta_data(path, read_meta_header(path), 8)


def test_data_may_lie_in_another_file(tmp_path):
    (tmp_path / "a.mhd").write_text(f"{HEADER}ElementDataFile = deep voxels.raw")
    with pytest.raises(DataError, match=r"deep voxels\.raw, which does not exist"):
        read_meta_header(tmp_path / "a.mhd")
    (tmp_path / "deep voxels.raw").write_bytes(bytes(8))
    assert read_meta_header(tmp_path / "a.mhd").held_bytes == 8


@pytest.mark.parametrize("name", ["slice%03d.raw 1 2 1", "LIST\na.raw\nb.raw"])
def test_data_in_several_files_is_left_to_itk(tmp_path, name):
    (tmp_path / "a.mhd").write_text(f"{HEADER}ElementDataFile = {name}\n")
    header = read_meta_header(tmp_path / "a.mhd")
    assert header.held_bytes is None
    check_meta_data(tmp_path / "a.mhd", header, 8)


@pytest.mark.parametrize("text", ["", "hello\n", "NDims = 3\n", "ElementDataFile = LOCAL\n"])
def test_other_texts_are_refused(tmp_path, text):
    (tmp_path / "a.mha").write_text(text)
    with pytest.raises(DataError, match="has no MetaImage header"):
        read_meta_header(tmp_path / "a.mha")
