"""Feature maps: what is written is read again, in memory and on file, in every number format."""

import numpy as np
import pytest
import torch

from medseg_brn.inference.features import FeatureMap
from medseg_brn.inference.tiles import list_tiles, whole
from medseg_brn.volumes.scratch import Scratch


@pytest.mark.parametrize("on_file", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_boxes_written_are_read_again(on_file, dtype):
    features = torch.from_numpy(np.arange(3 * 5 * 6 * 7).reshape(1, 3, 5, 6, 7) % 200).to(dtype)
    with Scratch() as scratch:
        kept = FeatureMap((5, 6, 7), scratch if on_file else None)
        for box in list_tiles((5, 6, 7), (2, 4, 7)):
            kept.write(box, features[:, :, *box])
        for box in [
            whole((5, 6, 7)),
            (slice(1, 4), slice(0, 6), slice(2, 7)),
            (slice(3, 5), slice(0, 6), slice(0, 7)),
        ]:
            read = kept.read(box)
            torch.testing.assert_close(read, features[:, :, *box])
            assert read.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_level_computed_in_one_piece_is_not_copied():
    features = torch.randn(1, 4, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    kept = FeatureMap((3, 3, 3), None)
    kept.write(whole((3, 3, 3)), features)
    assert kept.read(whole((3, 3, 3))).data_ptr() == features.data_ptr()


def test_features_read_from_a_file_are_a_copy():
    with Scratch() as scratch:
        kept = FeatureMap((2, 2, 2), scratch)
        kept.write(whole((2, 2, 2)), torch.ones(1, 1, 2, 2, 2))
        kept.read(whole((2, 2, 2))).zero_()
        assert (kept.read(whole((2, 2, 2))) == 1).all()
