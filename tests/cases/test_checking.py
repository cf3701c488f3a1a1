"""`check` finds every planted problem, tells the values and the remedy, and finds nothing in good data."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.checking import Problem, check_dataset, inspect_dataset
from medseg_brn.cases.dataset import read_dataset

Maker = Callable[..., Path]
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@dataclass
class Blocks:
    """The dataset's files as arrays, and the means to spoil them."""

    folder: Path
    write_nifti: Callable
    sample_image: Callable
    make_label_map: Callable

    def path(self, kind: str, name: str = "p1") -> Path:
        return self.folder / kind / f"{name}.nii.gz"

    def image(self, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> None:
        self.write_nifti(self.path("imagesTr"), self.sample_image(1) if array is None else array, affine)

    def label(self, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> None:
        self.write_nifti(self.path("labelsTr"), self.make_label_map() if array is None else array, affine)

    def problems(self) -> list[Problem]:
        return check_dataset(read_dataset(self.folder))


@pytest.fixture
def blocks(
    make_decathlon: Maker, write_nifti: Callable, sample_image: Callable, make_label_map: Callable
) -> Blocks:
    return Blocks(make_decathlon(), write_nifti, sample_image, make_label_map)


def truncate(blocks: Blocks) -> None:
    path = blocks.path("imagesTr")
    path.write_bytes(path.read_bytes()[:-300])


def replace_by_text(blocks: Blocks) -> None:
    blocks.path("imagesTr").write_text("<html>404 not found</html>")


def hold_text_in_gzip(blocks: Blocks) -> None:
    blocks.path("labelsTr").write_bytes(gzip.compress(b"no label map" * 100))


def remove(kind: str) -> Callable[[Blocks], None]:
    return lambda blocks: blocks.path(kind).unlink()


def spoil(dtype: type, value: float, voxels: int) -> Callable[[Blocks], None]:
    def write(blocks: Blocks) -> None:
        image = blocks.sample_image(1).astype(dtype)
        image[2, 3, :voxels] = value
        blocks.image(image)

    return write


def make_affine_singular(blocks: Blocks) -> None:
    """Repeats the header's row of x (16 bytes from 280 on) as the row of y."""
    path = blocks.path("imagesTr")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:296] + content[280:296] + content[312:]))


def turn_label(blocks: Blocks) -> None:
    blocks.label(affine=np.diag([-1.0, -1.0, 2.0, 1.0]))


def rotate_label(blocks: Blocks) -> None:
    angle = np.deg2rad(5)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    blocks.label(affine=rotation @ AFFINE)


def shift_label(blocks: Blocks) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 0.25
    blocks.label(affine=affine)


def label_value(dtype: type, value: float) -> Callable[[Blocks], None]:
    def write(blocks: Blocks) -> None:
        label_map = blocks.make_label_map(dtype=dtype)
        label_map[0, 0, :3] = value
        blocks.label(label_map)

    return write


def copy_image(blocks: Blocks) -> None:
    shutil.copy(blocks.path("imagesTr", "p0"), blocks.path("imagesTr", "p1"))


def save_image_again(blocks: Blocks) -> None:
    blocks.image(blocks.sample_image(0).astype(np.float32))


PLANTED = {
    "truncated": (truncate, ["p1.nii.gz", "truncated"], "again"),
    "no NIfTI file": (replace_by_text, ["p1.nii.gz"], ""),
    "no NIfTI file within gzip": (hold_text_in_gzip, ["labelsTr", "p1.nii.gz"], ""),
    "missing image": (remove("imagesTr"), ["imagesTr/p1.nii.gz does not exist"], "Check the name"),
    "missing labels": (remove("labelsTr"), ["labelsTr/p1.nii.gz does not exist"], "Check the name"),
    "NaN": (spoil(np.float32, np.nan, 4), ["4 NaN or infinite voxels of 720", "(2, 3, 0)"], "Replace them"),
    "infinite": (spoil(np.float64, -np.inf, 1), ["1 NaN or infinite voxels", "(2, 3, 0)"], "Replace them"),
    "constant": (
        lambda blocks: blocks.image(np.full((8, 9, 10), 7, np.int16)),
        ["p1.nii.gz is constant: all 720 voxels are 7"],
        "Export",
    ),
    "4D image": (
        lambda blocks: blocks.image(blocks.sample_image(1, (8, 9, 10, 5))),
        ["p1.nii.gz is 4D, (8, 9, 10, 5): it has 5 channels where the dataset has 1"],
        "Split",
    ),
    "4D label map": (
        lambda blocks: blocks.label(np.stack([blocks.make_label_map()] * 2, axis=-1)),
        ["labelsTr/p1.nii.gz has 2 channels", "(8, 9, 10, 2)"],
        "file of its own",
    ),
    "shape": (
        lambda blocks: blocks.label(blocks.make_label_map()[:, :, :9]),
        ["the label map p1.nii.gz", "shape (8, 9, 10) against (8, 9, 9)"],
        "nearest-neighbour",
    ),
    "spacing": (
        lambda blocks: blocks.label(affine=np.diag([1.0, 1.0, 2.5, 1.0])),
        ["spacing (1, 1, 2) mm against (1, 1, 2.5) mm"],
        "nearest-neighbour",
    ),
    "orientation": (turn_label, ["orientation RAS against LPS"], "copy the header"),
    "affine": (rotate_label, ["affine", "0.0871"], "copy the header"),
    "origin": (shift_label, ["origin (0, 0, 0) mm against (0.25, 0, 0) mm"], "copy the header"),
    "singular affine": (make_affine_singular, ["singular", "imagesTr/p1.nii.gz"], "header"),
    "unknown label": (label_value(np.uint8, 9), ["9 (3 voxels), beside 0, 1, 2"], "Correct the label map"),
    "fractional label": (label_value(np.float32, 0.5), ["3 voxels that are no integers", "0.5"], "nearest"),
    "NaN label": (label_value(np.float32, np.nan), ["3 voxels that are no integers", "nan"], "nearest"),
    "empty label map": (
        lambda blocks: blocks.label(np.zeros((8, 9, 10), np.uint8)),
        ["p1.nii.gz is empty: all 720 voxels are background"],
        "--allow-empty",
    ),
    "copied file": (copy_image, ["a copy of case 'p0'"], "patient"),
    "same voxels in another type": (save_image_again, ["a copy of case 'p0'"], "patient"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "told", "remedy"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_problem_is_the_only_one_found(
    blocks: Blocks, plant: Callable[[Blocks], None], told: list[str], remedy: str
) -> None:
    plant(blocks)
    (problem,) = blocks.problems()
    assert (problem.case, problem.severity) == ("p1", "error")
    for part in told:
        assert part in problem.message
    assert remedy in problem.remedy
    assert problem.remedy


def test_good_data_has_no_problem(blocks: Blocks) -> None:
    assert blocks.problems() == []


def test_integers_stored_as_floats_are_fine(blocks: Blocks) -> None:
    blocks.label(blocks.make_label_map(dtype=np.float64))
    assert blocks.problems() == []


def test_all_problems_of_all_cases_are_listed(blocks: Blocks) -> None:
    replace_by_text(blocks)
    label_value(np.uint8, 9)(blocks)
    blocks.write_nifti(blocks.path("imagesTr", "p2"), np.zeros((8, 9, 10), np.uint8))
    blocks.write_nifti(blocks.path("labelsTr", "p2"), np.zeros((8, 9, 11), np.uint8))
    found = [(problem.case, problem.message) for problem in blocks.problems()]
    assert [case for case, _ in found] == ["p1", "p1", "p2", "p2", "p2"]
    for (_, message), part in zip(found, ["p1", "9 (3 voxels)", "constant", "shape", "empty"], strict=True):
        assert part in message


def test_channels_on_different_grids(
    make_nnunet: Maker, write_nifti: Callable, sample_image: Callable
) -> None:
    folder = make_nnunet()
    write_nifti(folder / "imagesTr" / "p_1_0001.nii.gz", sample_image(3), np.diag([1.0, 1.5, 2.0, 1.0]))
    (problem,) = check_dataset(read_dataset(folder))
    assert problem.case == "p_1"
    assert "channels p_1_0000.nii.gz and p_1_0001.nii.gz" in problem.message
    assert "(1, 1, 2) mm against (1, 1.5, 2) mm" in problem.message


def test_a_missing_channel(make_nnunet: Maker) -> None:
    folder = make_nnunet()
    (folder / "imagesTr" / "p_1_0001.nii.gz").unlink()
    (problem,) = check_dataset(read_dataset(folder))
    assert "p_1_0001.nii.gz does not exist" in problem.message


def test_empty_label_maps_can_be_meant(blocks: Blocks) -> None:
    blocks.label(np.zeros((8, 9, 10), np.uint8))
    (problem,) = inspect_dataset(read_dataset(blocks.folder), allow_empty=True).problems
    assert problem.severity == "warning"


REGIONS = {"background": 0, "both": [1, 2], "right": 2, "third": 3, "ignore": 9}


@pytest.fixture
def sparse(blocks: Blocks, make_decathlon: Maker) -> Blocks:
    """Left and right of p0 … p2 as two regions, and an ignore label."""
    labels = {name: value for name, value in REGIONS.items() if name != "third"}
    make_decathlon(labels=labels, regions_class_order=[1, 2])
    return blocks


def test_regions_and_ignored_voxels_are_fine(sparse: Blocks) -> None:
    label_map = sparse.make_label_map()
    label_map[4:] = 9
    sparse.label(label_map)
    assert sparse.problems() == []


def test_a_label_map_that_is_ignored_as_a_whole_is_an_error(sparse: Blocks) -> None:
    sparse.label(np.full((8, 9, 10), 9, np.uint8))
    (problem,) = inspect_dataset(read_dataset(sparse.folder), allow_empty=True).problems
    assert (problem.case, problem.severity) == ("p1", "error")
    assert "p1.nii.gz is ignored as a whole: all 720 voxels have the value 9" in problem.message
    assert problem.remedy.startswith("Annotate some of its voxels")


def test_what_is_not_ignored_may_be_empty(sparse: Blocks) -> None:
    label_map = np.zeros((8, 9, 10), np.uint8)
    label_map[2:] = 9
    sparse.label(label_map)
    (problem,) = sparse.problems()
    assert "is empty: all 180 voxels that are not ignored are background" in problem.message


def test_regions_that_never_occur_are_told(sparse: Blocks, make_decathlon: Maker) -> None:
    folder = make_decathlon(labels=REGIONS | {"both": [1, 2, 4]}, regions_class_order=[1, 2, 3])
    (problem,) = check_dataset(read_dataset(folder))
    assert problem.severity == "warning"
    assert problem.message == "No label map holds 'third' (value 3)."


def test_two_cases_of_one_name(tmp_path: Path, blocks: Blocks) -> None:
    manifest = tmp_path / "cohort.csv"
    rows = [f"twin,{blocks.path('imagesTr', name)},{blocks.path('labelsTr', name)}" for name in ("p0", "p1")]
    manifest.write_text("\n".join(["case,image,label", *rows]))
    (problem,) = check_dataset(read_dataset(manifest))
    assert problem.severity == "error"
    assert "2 cases are named 'twin'" in problem.message
    assert "p0.nii.gz" in problem.message
    assert "p1.nii.gz" in problem.message


def test_a_patient_may_have_the_same_image_twice(tmp_path: Path, blocks: Blocks) -> None:
    copy_image(blocks)
    rows = [f"{n},{blocks.path('imagesTr', n)},{blocks.path('labelsTr', n)},A" for n in ("p0", "p1")]
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("\n".join(["case,image,label,patient", *rows]))
    assert check_dataset(read_dataset(manifest)) == []


def test_a_spacing_far_from_the_others_is_a_warning(blocks: Blocks) -> None:
    affine = np.diag([0.001, 0.001, 0.002, 1.0])  # metres, perhaps
    blocks.image(affine=affine)
    blocks.label(affine=affine)
    (problem,) = blocks.problems()
    assert (problem.case, problem.severity) == ("p1", "warning")
    assert "0.001 × 0.001 × 0.002 mm, 1e+03 times off the dataset's median 1 × 1 × 2 mm" in problem.message


def test_turned_scans_have_the_spacing_of_the_others(blocks: Blocks) -> None:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2, 1, 1, 1
    blocks.image(np.moveaxis(blocks.sample_image(1), 2, 0), affine)
    blocks.label(np.moveaxis(blocks.make_label_map(), 2, 0), affine)
    assert blocks.problems() == []


def test_a_class_that_never_occurs_is_a_warning(make_decathlon: Maker) -> None:
    folder = make_decathlon(values=(1,))
    (problem,) = check_dataset(read_dataset(folder))
    assert (problem.case, problem.severity) == ("", "warning")
    assert "No label map holds 'right' (value 2)" in problem.message


def test_ct_that_is_taken_as_mri_is_a_warning(make_nnunet: Maker, write_nifti: Callable) -> None:
    """The first channel is called T1, the second CT; both hold Hounsfield units."""
    folder = make_nnunet()
    for name in ("p_0_0000", "p_0_0001", "p_1_0001"):
        image = np.linspace(-1024, 1500, 720).reshape(8, 9, 10)
        write_nifti(folder / "imagesTr" / f"{name}.nii.gz", image + 0.1 * int(name[2]) + int(name[-1]))
    (problem,) = check_dataset(read_dataset(folder))
    assert (problem.case, problem.severity) == ("", "warning")
    assert "looks like Hounsfield units: channel 0 goes down to -1024." in problem.message
    assert "dataset.modalities=[ct,ct]" in problem.remedy
    assert check_dataset(read_dataset(folder, modalities=("ct", "ct"))) == []


def test_mri_may_have_a_few_negative_values(blocks: Blocks) -> None:
    blocks.image(blocks.sample_image(1) - 850)
    assert blocks.problems() == []


def test_what_the_description_got_wrong_is_told_first(make_decathlon: Maker) -> None:
    folder = make_decathlon(numTraining=260)
    (problem,) = check_dataset(read_dataset(folder))
    assert (problem.case, problem.severity) == ("", "warning")
    assert "numTraining 260" in problem.message


def test_cases_without_label_maps_are_warnings(make_decathlon: Maker) -> None:
    images = [f"imagesTr/p{n}.nii.gz" for n in range(3)]
    (problem,) = check_dataset(read_dataset(make_decathlon(training=images)))
    assert (problem.severity, problem.message) == ("warning", "None of the 3 cases has a label map.")
    labelled = {"image": images[0], "label": "labelsTr/p0.nii.gz"}
    found = check_dataset(read_dataset(make_decathlon(training=[labelled, *images[1:]])))
    assert [(problem.case, problem.severity) for problem in found] == [("p1", "warning"), ("p2", "warning")]


def test_each_case_is_told_of_when_it_is_done(blocks: Blocks) -> None:
    done: list[str] = []
    check_dataset(read_dataset(blocks.folder), on_case=lambda case: done.append(case.name))
    assert done == ["p0", "p1", "p2"]


def test_the_hippocampus_has_no_problem(data_folder: Path) -> None:
    inspection = inspect_dataset(read_dataset(data_folder / "Task04_Hippocampus"))
    assert inspection.problems == []
    assert len(inspection.cases) == 208


def test_a_ct_and_the_label_map_of_another_scan(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "abdomen_ct"
    manifest = tmp_path / "abdomen.csv"
    manifest.write_text(
        "case,image,label\n"
        f"right,{folder / 'example_ct_sm.nii.gz'},{folder / 'example_seg.nii.gz'}\n"
        f"wrong,{folder / 'example_ct.nii.gz'},{folder / 'example_seg.nii.gz'}\n"
    )
    (problem,) = check_dataset(read_dataset(manifest, modalities=("ct",)))
    assert (problem.case, problem.severity) == ("wrong", "error")
    assert "shape (122, 101, 112) against (122, 101, 30)" in problem.message
