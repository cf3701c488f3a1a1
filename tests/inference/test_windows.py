"""Windows against the whole volume, on networks whose answer at a voxel is known."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg_brn.inference.windows import count_row_bytes, count_windows, iterate_window_slabs, list_starts
from medseg_brn.networks.unet3d import UNet3d


class PerVoxel(nn.Module):
    """Logits (v, 2 v, 0) where the image is v: windows cannot matter."""

    def forward(self, image):
        return torch.cat([image, 2 * image, 0 * image], dim=1)


class RampAlongX(nn.Module):
    """Logits that depend on where in the window a voxel lies: (x, 0)."""

    def forward(self, image):
        ramp = torch.arange(image.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        return torch.cat([ramp + 0 * image, 0 * image], dim=1)


def _volume(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _predict(network, image, **options) -> torch.Tensor:
    """The slabs, one after the other."""
    return torch.cat(list(iterate_window_slabs(network, np.asarray(image), **options)), 1)


def test_regions_have_a_sigmoid_each():
    image = _volume(1, 7, 5, 6)
    found = _predict(PerVoxel(), image, patch_size=(4, 4, 4), mirror_axes=(0, 2), exclusive=False)
    expected = torch.cat([image, 2 * image, 0 * image]).sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    patch_size=st.tuples(*[st.integers(1, 6)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    mirror_axes=st.sets(st.integers(0, 2)),
)
@settings(max_examples=40, deadline=None)
def test_a_network_that_looks_at_single_voxels_sees_no_windows(shape, patch_size, overlap, mirror_axes):
    image = _volume(1, *shape)
    calls = []
    probabilities = _predict(
        PerVoxel(),
        image,
        patch_size=patch_size,
        overlap=overlap,
        mirror_axes=sorted(mirror_axes),
        progress=lambda done, total: calls.append((done, total)),
    )
    expected = torch.cat([image, 2 * image, 0 * image]).softmax(0)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    total = count_windows(shape, patch_size, overlap)
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (total, total)


@given(length=st.integers(1, 40), size=st.integers(1, 12), overlap=st.floats(0, 0.95))
def test_windows_cover_every_voxel_and_end_with_the_volume(length, size, overlap):
    padded = max(length, size)
    starts = list_starts(padded, size, overlap)
    covered = {voxel for start in starts for voxel in range(start, start + size)}
    assert covered == set(range(padded))
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("shape", "overlap"), [((21, 13, 9), 0.5), ((8, 30, 8), 0.25), ((5, 9, 17), 0.6)])
def test_the_answer_is_that_of_monai_s_sliding_window(norm, shape, overlap):
    from monai.inferers.utils import sliding_window_inference

    network = UNet3d(1, 3, (4, 4), norm=norm).eval()
    image = _volume(1, *shape)
    with torch.no_grad():
        expected = sliding_window_inference(
            image[None], (8, 8, 8), 1, lambda x: network(x).softmax(1), overlap=overlap, mode="gaussian"
        )[0]
    found = _predict(network, image, patch_size=(8, 8, 8), overlap=overlap)
    torch.testing.assert_close(found, torch.as_tensor(expected), atol=1e-5, rtol=0)


def test_slabs_are_handed_on_as_soon_as_no_window_touches_them():
    """Windows of 4 planes, 2 in common, over 9: they begin at 0, 2, 4 and 5."""
    slabs = iterate_window_slabs(PerVoxel(), _volume(1, 9, 4, 4).numpy(), patch_size=(4, 4, 4), overlap=0.5)
    assert [slab.shape[1] for slab in slabs] == [2, 2, 1, 4]


@pytest.mark.parametrize(
    ("length", "size", "overlap", "windows"), [(4, 4, 0.5, 1), (3, 4, 0.5, 1), (7, 4, 0.5, 3), (8, 4, 0, 2)]
)
def test_number_of_windows_along_an_axis(length, size, overlap, windows):
    assert count_windows((length, 1, 1), (size, 1, 1), overlap) == windows


def test_overlaps_are_averaged_with_a_gaussian_weight():
    """Two windows of 4 over 6 voxels share two voxels; σ is an eighth of the window."""
    found = _predict(RampAlongX(), _volume(1, 6, 4, 4), patch_size=(4, 4, 4), overlap=0.5)
    at = torch.sigmoid(torch.arange(4.0))
    weight = torch.exp(-(torch.arange(-1.5, 2)[:2] ** 2) / (2 * 0.5**2))  # at window places 0 and 1
    side = torch.exp(-(torch.tensor([1.5, 0.5, 0.5, 1.5]) ** 2) / (2 * 0.5**2))
    weight = (side[:, None, None] * side[:, None] * side).clamp(min=1e-3)[:, 1, 1]
    two = (at[2] * weight[2] + at[0] * weight[0]) / (weight[2] + weight[0])
    three = (at[3] * weight[3] + at[1] * weight[1]) / (weight[3] + weight[1])
    expected = torch.stack([at[0], at[1], two, three, at[2], at[3]])
    torch.testing.assert_close(found[0, :, 1, 1], expected, atol=1e-5, rtol=0)


def test_mirroring_averages_over_all_combinations_of_axes():
    image = _volume(1, 4, 4, 2)
    network = UNet3d(1, 3, (4, 4), norm="none").eval()
    found = _predict(network, image, patch_size=(4, 4, 2), mirror_axes=(0, 2))
    expected = np.zeros((3, 4, 4, 2))
    for x, z in product((1, -1), repeat=2):
        mirrored = torch.from_numpy(image.numpy()[None, :, ::x, :, ::z].copy())
        expected += network(mirrored).softmax(1).detach().numpy()[0, :, ::x, :, ::z] / 4
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_mirrored_volume_gives_the_mirrored_answer_when_all_mirrorings_are_averaged():
    image = _volume(1, 8, 6, 4)
    network = UNet3d(1, 2, (4, 4), norm="none").eval()
    options = {"patch_size": (4, 4, 4), "overlap": 0.5, "mirror_axes": (0, 1, 2)}
    plain = _predict(network, image, **options)
    mirrored = _predict(network, image.flip(1), **options)
    torch.testing.assert_close(mirrored.flip(1), plain, atol=1e-5, rtol=0)


def test_a_small_volume_is_padded_with_zeros_around_its_middle():
    network = UNet3d(1, 2, (4, 4), norm="none").eval()
    image = _volume(1, 2, 4, 3)
    padded = torch.zeros(1, 4, 4, 4)
    padded[:, 1:3, :, 0:3] = image
    found = _predict(network, image, patch_size=(4, 4, 4))
    expected = network(padded[None]).softmax(1)[0, :, 1:3, :, 0:3]
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=0)


def test_probabilities_sum_to_1_and_need_no_gradient():
    network = UNet3d(2, 3, (4, 4), norm="group").eval()
    found = _predict(network, _volume(2, 10, 7, 5).numpy(), patch_size=(4, 4, 4), overlap=0.25)
    assert found.shape == (3, 10, 7, 5)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(0), torch.ones(10, 7, 5), atol=1e-5, rtol=0)


def test_bf16_changes_little():
    network = UNet3d(1, 3, (4, 4), norm="batch").eval()
    image = _volume(1, 4, 4, 4)
    exact = _predict(network, image, patch_size=(4, 4, 4))
    found = _predict(network, image, patch_size=(4, 4, 4), dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


def test_the_bytes_of_a_row_are_those_of_its_sums_and_means():
    """Patch 4, 3 classes, planes of 5 x 6 voxels: sums, means and weights of 4 planes in 4 bytes each."""
    assert count_row_bytes((9, 5, 6), (4, 4, 4), 3) == 4 * (4 * 5 * 6) * (3 + 3 + 2)
