"""A dataset's classes, modalities, images and label maps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_dataset, read_images, read_label_map, read_labelled_case
from medseg_brn.cases.targets import Region
from medseg_brn.errors import DataError

Maker = Callable[..., Path]


def test_a_dataset_knows_its_classes_values_and_channels(make_nnunet: Maker) -> None:
    dataset = read_dataset(make_nnunet())
    assert dataset.class_names == ("background", "necrosis", "edema", "enhancing")
    assert dataset.label_values == (0, 1, 2, 4)
    assert dataset.modalities == ("mri", "ct")
    assert dataset.num_classes == 4


def test_label_maps_hold_consecutive_classes(make_nnunet: Maker, make_label_map: Callable) -> None:
    dataset = read_dataset(make_nnunet(values=(1, 2, 4)))
    label_map = read_label_map(dataset.cases[0], dataset)
    assert np.array_equal(label_map.array, make_label_map((1, 2, 3)))
    assert label_map.spacing_mm == (1.0, 1.0, 2.0)


def test_values_0_and_255_become_two_classes(make_decathlon: Maker) -> None:
    dataset = read_dataset(make_decathlon(values=(255,), labels={"background": 0, "mask": 255}))
    assert sorted(set(read_label_map(dataset.cases[0], dataset).array.ravel().tolist())) == [0, 1]


def test_ignored_voxels_have_the_class_above_all_others(make_decathlon: Maker) -> None:
    labels = {"background": 0, "right": 200, "ignore": 7}
    dataset = read_dataset(make_decathlon(values=(7, 200), labels=labels))
    assert (dataset.label_values, dataset.ignore_value) == ((0, 200), 7)
    array = read_label_map(dataset.cases[0], dataset).array
    assert (array[1] == 2).sum() == (array[2] == 1).sum() == 24
    assert dataset.targets.ignore_class == 2


def test_regions_are_of_classes(make_nnunet: Maker) -> None:
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}
    dataset = read_dataset(make_nnunet(labels=labels, regions_class_order=[1, 2, 4]))
    assert dataset.class_names == ("background", "label 1", "label 2", "enhancing")
    assert dataset.regions[1] == Region("core", (2, 3), 2)
    assert dataset.targets.num_outputs == 3
    assert dataset.structures.label_values == {"whole": (1, 2, 4), "core": (2, 4), "enhancing": (4,)}


def test_a_description_beside_a_manifest_may_have_regions(make_decathlon: Maker, tmp_path: Path) -> None:
    folder = make_decathlon()
    (tmp_path / "cohort.csv").write_text(
        f"case,image,label\na,{folder}/imagesTr/p0.nii.gz,{folder}/labelsTr/p0.nii.gz\n"
    )
    content = {"labels": {"both": [1, 2], "right": 2, "ignore": 5}, "regions_class_order": [1, 2]}
    (tmp_path / "cohort.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path / "cohort.csv")
    assert [region.name for region in dataset.regions] == ["both", "right"]
    assert dataset.ignore_value == 5


def test_modalities_can_be_overridden(make_nnunet: Maker) -> None:
    folder = make_nnunet()
    assert read_dataset(folder, modalities=("ct", "ct")).modalities == ("ct", "ct")
    with pytest.raises(DataError, match=r"\('ct',\) do not fit dataset .* 2 channels \(T1, CT\)"):
        read_dataset(folder, modalities=("ct",))
    with pytest.raises(DataError, match="pet"):
        read_dataset(folder, modalities=("ct", "pet"))


@pytest.mark.parametrize(
    ("name", "modality"),
    [("CT", "ct"), ("ct", "ct"), ("CT (portal)", "ct"), ("MRI", "mri"), ("fractal", "mri"), ("PET", "mri")],
)
def test_a_channel_is_ct_when_its_name_says_so(make_decathlon: Maker, name: str, modality: str) -> None:
    assert read_dataset(make_decathlon(cases=1, modality={"0": name})).modalities == (modality,)


def test_channels_of_several_files_are_read_in_order(make_nnunet: Maker, sample_image: Callable) -> None:
    case = read_dataset(make_nnunet()).cases[1]
    first, second = read_images(case)
    assert np.array_equal(first.array, sample_image(10))
    assert np.array_equal(second.array, sample_image(11))


def test_channels_of_one_4d_file_are_read_in_order(
    make_decathlon: Maker, write_nifti: Callable, sample_image: Callable
) -> None:
    folder = make_decathlon(cases=1, modality={"0": "FLAIR", "1": "T1", "2": "T2"})
    image = sample_image(5, (8, 9, 10, 3))
    write_nifti(folder / "imagesTr" / "p0.nii.gz", image)
    images, label_map = read_labelled_case(read_dataset(folder).cases[0], read_dataset(folder))
    assert [np.array_equal(volume.array, image[..., n]) for n, volume in enumerate(images)] == [True] * 3
    assert label_map.shape == (8, 9, 10)


def test_channels_on_different_grids_are_refused(
    make_nnunet: Maker, write_nifti: Callable, sample_image: Callable
) -> None:
    folder = make_nnunet()
    write_nifti(folder / "imagesTr" / "p_0_0001.nii.gz", sample_image(0), np.diag([1.0, 1.0, 2.5, 1.0]))
    message = (
        r"'p_0': the channels p_0_0000.nii.gz and p_0_0001.nii.gz .* \(1, 1, 2\) mm against \(1, 1, 2.5\)"
    )
    with pytest.raises(DataError, match=message):
        read_images(read_dataset(folder).cases[0])


def test_nan_is_refused(make_decathlon: Maker, write_nifti: Callable, sample_image: Callable) -> None:
    folder = make_decathlon(cases=1)
    image = sample_image(0).astype(np.float32)
    image[0, 0, 0] = np.nan
    write_nifti(folder / "imagesTr" / "p0.nii.gz", image)
    with pytest.raises(DataError, match=r"'p0': .*p0.nii.gz has NaN or infinite voxels"):
        read_images(read_dataset(folder).cases[0])


def test_a_label_map_on_another_grid_is_refused(
    make_decathlon: Maker, write_nifti: Callable, make_label_map: Callable
) -> None:
    folder = make_decathlon()
    write_nifti(folder / "labelsTr" / "p1.nii.gz", make_label_map(), np.diag([-1.0, 1.0, 2.0, 1.0]))
    dataset = read_dataset(folder)
    with pytest.raises(
        DataError, match=r"'p1': image and label map .* orientation RAS against LAS; resample"
    ):
        read_labelled_case(dataset.cases[1], dataset)


def test_a_case_with_too_few_channels_is_refused(make_decathlon: Maker) -> None:
    dataset = read_dataset(make_decathlon(modality={"0": "T1", "1": "T2"}))
    with pytest.raises(DataError, match="'p0' has 1 channels, but the dataset 2"):
        read_labelled_case(dataset.cases[0], dataset)


def test_an_unlabelled_case_has_no_label_map(make_decathlon: Maker) -> None:
    dataset = read_dataset(
        make_decathlon(training=["./imagesTr/p0.nii.gz", {"image": "./imagesTr/p1.nii.gz"}])
    )
    assert dataset.labelled_cases == ()
    with pytest.raises(DataError, match="'p0' has no label map"):
        read_label_map(dataset.cases[0], dataset)


def test_without_a_description_classes_are_the_values_found(
    tmp_path: Path, write_nifti: Callable, sample_image: Callable, make_label_map: Callable
) -> None:
    for name, values in (("a", (3,)), ("b", (200, 17))):
        write_nifti(tmp_path / f"{name}.nii", sample_image(1))
        write_nifti(tmp_path / f"{name}_seg.nii", make_label_map(values, np.float32))
    (tmp_path / "broken_seg.nii").write_bytes(b"nothing")
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("case,image,label\na,a.nii,a_seg.nii\nb,b.nii,b_seg.nii\nc,b.nii,broken_seg.nii\n")
    dataset = read_dataset(manifest)
    assert dataset.class_names == ("background", "class_3", "class_17", "class_200")
    assert dataset.label_values == (0, 3, 17, 200)
    assert dataset.modalities == ("mri",)


def test_channels_of_undescribed_4d_files_are_counted(
    tmp_path: Path, write_nifti: Callable, sample_image: Callable
) -> None:
    for n, shape in enumerate([(4, 4, 4, 7), (4, 4, 4, 2), (4, 4, 4, 2)]):
        write_nifti(tmp_path / f"{n}.nii", sample_image(n, shape))
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("case,image\n" + "".join(f"p{n},{n}.nii\n" for n in range(3)))
    assert read_dataset(manifest).modalities == ("mri", "mri")


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a\\b"])
def test_case_names_are_file_names(name: str) -> None:
    with pytest.raises(DataError, match="cannot be a file name"):
        Case(name, (Path("image.nii"),))


def test_a_case_has_an_image() -> None:
    with pytest.raises(DataError, match="'p' has no image"):
        Case("p", ())


def test_the_hippocampus_is_read_as_described(data_folder: Path) -> None:
    dataset = read_dataset(data_folder / "Task04_Hippocampus")
    assert len(dataset.cases) == 208
    assert dataset.class_names == ("background", "Anterior", "Posterior")
    assert dataset.licence == "CC-BY-SA 4.0"
    assert dataset.problems == ()
