import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_brn.cases.dataset import read_dataset, read_images, read_label_map
from medseg_brn.cases.phantom import Modality, draw_case, make_phantom
from medseg_brn.errors import ConfigError, DataError


@pytest.fixture(scope="module", params=["mri", "ct"])
def modality(request: pytest.FixtureRequest) -> Modality:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cohort(modality: Modality, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases, twice around the four sites, coarse to be quick."""
    return make_phantom(
        tmp_path_factory.mktemp("phantom") / modality, modality=modality, cases=8, voxel_mm=6.0
    )


def test_every_layout_that_can_read_it_reads_the_same_cases(cohort: Path, modality: Modality) -> None:
    decathlon, manifest = read_dataset(cohort), read_dataset(cohort, layout="csv")
    assert decathlon.modalities == manifest.modalities == (modality,)
    assert decathlon.class_names == manifest.class_names
    assert decathlon.class_names[0] == "background" and len(decathlon.class_names) == 4
    assert [case.name for case in decathlon.cases] == [case.name for case in manifest.cases]
    assert [case.site for case in manifest.cases] == ["north", "harbour", "valley", "summit"] * 2


def test_the_description_is_as_the_decathlon_writes_it(cohort: Path) -> None:
    description = json.loads((cohort / "dataset.json").read_text())
    assert description["numTraining"] == len(description["training"]) == 8
    for entry in description["training"]:
        assert (cohort / entry["image"]).is_file() and (cohort / entry["label"]).is_file()


def test_image_and_label_map_share_one_grid_to_the_last_bit(cohort: Path) -> None:
    dataset = read_dataset(cohort)
    for case in dataset.cases:
        (image,), label_map = read_images(case), read_label_map(case, dataset)
        assert image.shape == label_map.shape
        assert np.array_equal(image.affine, label_map.affine)
        assert np.isfinite(image.array).all() and image.array.std() > 0


def test_grids_are_upright_oblique_isotropic_anisotropic_and_of_several_orientations(cohort: Path) -> None:
    grids = [nib.load(path) for path in sorted((cohort / "imagesTr").iterdir())]
    spacings = np.array([grid.header.get_zooms() for grid in grids])
    obliquity = [np.rad2deg(nib.affines.obliquity(grid.affine)).max() for grid in grids]
    assert len({nib.aff2axcodes(grid.affine) for grid in grids}) >= 3
    assert (spacings.max(axis=1) / spacings.min(axis=1)).max() > 1.8
    assert (spacings.max(axis=1) / spacings.min(axis=1)).min() == pytest.approx(1, abs=1e-4)
    assert min(obliquity) < 0.1 and max(obliquity) > 1


def test_every_class_occurs_and_the_anatomy_varies(cohort: Path) -> None:
    dataset = read_dataset(cohort)
    counts = np.array(
        [np.bincount(read_label_map(case, dataset).array.ravel(), minlength=4) for case in dataset.cases]
    )
    assert (counts.sum(axis=0) > 0).all()
    assert (counts > 0)[:, 1:].mean() > 0.7
    assert len(np.unique(counts, axis=0)) == len(counts)


def test_sites_of_mri_store_intensities_a_hundredfold_apart() -> None:
    brightest = [np.percentile(draw_case("mri", index, voxel_mm=8.0).image.array, 99) for index in range(4)]
    assert max(brightest) > 100 * min(brightest)


def test_sites_of_ct_agree_on_hounsfield_units() -> None:
    for index in range(4):
        case = draw_case("ct", index, voxel_mm=8.0)
        assert np.percentile(case.image.array, 3) == pytest.approx(-1000, abs=40)
        assert 20 < np.median(case.image.array[case.label_map.array == 1]) < 130


def test_a_scan_depends_on_its_seed_and_number_and_not_on_the_cohort(
    cohort: Path, modality: Modality, tmp_path: Path
) -> None:
    smaller = make_phantom(tmp_path / "smaller", modality=modality, cases=3, voxel_mm=6.0)
    other = make_phantom(tmp_path / "other", modality=modality, cases=3, voxel_mm=6.0, seed=1)
    for path in sorted((smaller / "imagesTr").iterdir()):
        for folder in ("imagesTr", "labelsTr"):
            written = (cohort / folder / path.name).read_bytes()
            assert (smaller / folder / path.name).read_bytes() == written
            assert (other / folder / path.name).read_bytes() != written


def test_voxel_size_changes_the_grid_and_not_the_person(modality: Modality) -> None:
    def volumes_ml(voxel_mm: float) -> np.ndarray:
        label_map = draw_case(modality, 0, voxel_mm=voxel_mm).label_map
        voxel_ml = np.prod(label_map.spacing_mm) / 1000
        return np.bincount(label_map.array.ravel(), minlength=4)[1:] * voxel_ml

    # Only the largest class: a coarse grid counts few voxels of the small ones.
    assert volumes_ml(6.0)[0] == pytest.approx(volumes_ml(4.0)[0], rel=0.05)


def test_progress_is_told_case_by_case(tmp_path: Path) -> None:
    told: list[str] = []
    make_phantom(tmp_path / "p", modality="ct", cases=2, voxel_mm=10.0, on_case=told.append)
    assert told == ["abdomen_000", "abdomen_001"]
    with (tmp_path / "p" / "manifest.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == told


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match=f"{tmp_path}.*choose another place"):
        make_phantom(tmp_path, cases=1, voxel_mm=10.0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_cohort_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "p", cases=2, voxel_mm=10.0, on_case=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "pet"}, "'pet'.*mri, ct"),
        ({"cases": 0}, "0 cases.*at least 1"),
        ({"seed": -1}, "-1 is negative"),
        ({"voxel_mm": 0.1}, "0.1 mm.*0.5 to 10"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_phantom(tmp_path / "p", **options)  # type: ignore[arg-type]
