import nibabel as nib
import numpy as np
import pytest

from medseg_brn.cases.phantom_scanner import (
    CT_SITES,
    MRI_SITES,
    Site,
    make_grid,
    scan_ct,
    scan_mri,
    voxel_positions,
)

SITES = MRI_SITES + CT_SITES
EXTENT_MM = (160.0, 200.0, 120.0)


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.name}-{site.orientation}")
def test_a_grid_has_the_habits_of_its_site_and_covers_the_box(site: Site) -> None:
    grid = make_grid(site, EXTENT_MM, 3.0, np.random.default_rng(0))
    assert grid.spacing_mm == pytest.approx([3 * factor for factor in site.spacing_factors], rel=1e-5)
    assert grid.orientation == site.orientation
    size_mm = np.array(grid.shape) * grid.spacing_mm
    box = np.array(EXTENT_MM)[nib.orientations.axcodes2ornt(tuple(site.orientation))[:, 0].astype(int)]
    assert (size_mm >= box - 1e-3).all() and (size_mm < box + np.array(grid.spacing_mm) + 1e-3).all()


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.name}-{site.orientation}")
def test_an_affine_is_what_a_file_can_hold(site: Site) -> None:
    affine = make_grid(site, EXTENT_MM, 2.7, np.random.default_rng(0)).affine
    assert np.array_equal(affine, affine.astype(np.float32))


def test_every_kind_of_grid_occurs() -> None:
    for sites in (MRI_SITES, CT_SITES):
        assert len({site.orientation for site in sites}) >= 3
        assert any(site.tilt_degrees == 0 for site in sites) and any(site.tilt_degrees > 0 for site in sites)
        assert any(len(set(site.spacing_factors)) == 1 for site in sites)
        assert any(max(site.spacing_factors) > 1.8 * min(site.spacing_factors) for site in sites)


def test_voxel_positions_are_the_affine_applied() -> None:
    grid = make_grid(MRI_SITES[1], EXTENT_MM, 8.0, np.random.default_rng(4))
    positions = voxel_positions(grid)
    assert positions.shape == (3, *grid.shape)
    assert positions[:, 3, 5, 2] == pytest.approx((grid.affine @ [3, 5, 2, 1])[:3], abs=1e-3)


def test_noise_of_mri_is_rician() -> None:
    """In air the magnitude of two Gaussians remains: mean sd * sqrt(pi / 2), never negative."""
    site = Site("test", "RAS", (1, 1, 1), 0, blur_voxels=0, noise=0.1, stored_as="float32")
    air, positions = np.zeros((40, 40, 40), np.float32), np.zeros((3, 40, 40, 40), np.float32)
    image = scan_mri(air, positions, site, np.random.default_rng(0))
    ratio = image.mean() / image.std()
    assert image.min() >= 0
    assert ratio == pytest.approx(np.sqrt(np.pi / 2) / np.sqrt(2 - np.pi / 2), rel=0.02)


def test_noise_of_ct_has_the_standard_deviation_of_its_site() -> None:
    site = Site("test", "RAS", (1, 1, 1), 0, blur_voxels=0, noise=15, stored_as="float32")
    water, nowhere = np.zeros((40, 40, 40), np.float32), np.zeros((3, 40, 40, 40), np.float32)
    image = scan_ct(water, nowhere, site, np.random.default_rng(0))
    assert image.std() == pytest.approx(15, rel=0.01)
    assert abs(image.mean()) < 15


def test_ct_is_never_below_what_scanners_store() -> None:
    shape = (20, 20, 20)
    air, nowhere = np.full(shape, -1000, np.float32), np.zeros((3, *shape), np.float32)
    image = scan_ct(air, nowhere, CT_SITES[3], np.random.default_rng(0))
    assert image.min() == -1024
