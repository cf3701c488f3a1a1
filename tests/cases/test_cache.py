"""Prepared cases on disk: mapped, never stale, never half there."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_brn.cases.cache import FILES, PreparedCase, prepare_case, prepare_cases, sample_foreground
from medseg_brn.cases.dataset import Case, Dataset, read_dataset, read_labelled_case
from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images, prepare_label_map
from medseg_brn.cases.targets import Region
from medseg_brn.errors import DataError

PREPROCESSING = Preprocessing(
    spacing_mm=(1, 1, 1), crop="nonzero", intensity=(IntensityScheme(scheme="zscore"),)
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three cases whose label maps hold the values 0, 7 and 9."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    return Dataset(
        name="drawn",
        root=folder,
        cases=tuple(write_case(folder, f"case_{seed}", seed) for seed in range(3)),
        class_names=("background", "left", "right"),
        label_values=(0, 7, 9),
        modalities=("mri",),
    )


def write_case(folder: Path, name: str, seed: int, size: int = 12) -> Case:
    rng = np.random.default_rng(seed)
    image = rng.uniform(1, 100, (size, size, size)).astype(np.float32)
    image[:2] = 0
    label_map = rng.choice(np.array([0, 7, 9], np.uint8), image.shape, p=(0.8, 0.15, 0.05))
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (image, label_map), strict=True):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), path)
    return Case(name, (paths[0],), paths[1])


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def entries(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir())


def test_holds_what_preprocessing_gives(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Case] = []
    prepared = prepare_cases(dataset.cases, dataset, PREPROCESSING, tmp_path / "cache", on_case=seen.append)
    assert [case.name for case in prepared] == ["case_0", "case_1", "case_2"]
    assert seen == list(dataset.cases)
    for case, ready in zip(dataset.cases, prepared, strict=True):
        channels, label_map = read_labelled_case(case, dataset)
        expected = prepare_images(channels, PREPROCESSING)
        assert expected.array.shape == (1, 10, 12, 24)
        np.testing.assert_array_equal(ready.image(), expected.array)
        np.testing.assert_array_equal(ready.label_map(), prepare_label_map(label_map, expected.record))
        assert ready.spacing_mm == expected.spacing_mm


def test_patches_are_read_through_memory_maps(dataset: Dataset, tmp_path: Path) -> None:
    ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
    assert isinstance(ready.image(), np.memmap)
    assert isinstance(ready.label_map(), np.memmap)
    assert all(isinstance(voxels, np.memmap) for voxels in ready.foreground().values())
    assert ready.image().dtype == np.float32
    assert ready.label_map().dtype == np.uint8
    assert not ready.image().flags.writeable


def test_travels_between_processes_as_paths(dataset: Dataset, tmp_path: Path) -> None:
    ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
    ready.image()
    pickled = pickle.dumps(ready)
    assert len(pickled) < 2000
    assert pickle.loads(pickled) == ready  # noqa: S301


def test_several_processes_give_the_same_files(dataset: Dataset, tmp_path: Path) -> None:
    alone = prepare_cases(dataset.cases, dataset, PREPROCESSING, tmp_path / "alone")
    together = prepare_cases(dataset.cases, dataset, PREPROCESSING, tmp_path / "together", jobs=2)
    assert entries(tmp_path / "alone") == entries(tmp_path / "together")
    for one, other in zip(alone, together, strict=True):
        for path, twin in zip(paths_of(one), paths_of(other), strict=True):
            assert path.read_bytes() == twin.read_bytes()


def paths_of(ready: PreparedCase) -> tuple[Path, ...]:
    return ready.image_path, ready.label_path, ready.foreground_path


class TestForeground:
    def test_lists_the_voxels_of_each_class(self, dataset: Dataset, tmp_path: Path) -> None:
        ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        label_map = ready.label_map()
        foreground = ready.foreground()
        assert set(foreground) == {1, 2}
        for value, voxels in foreground.items():
            np.testing.assert_array_equal(voxels, np.argwhere(label_map == value))

    def test_draws_ten_thousand_evenly_and_always_the_same(self) -> None:
        label_map = np.zeros((40, 40, 40), np.uint8)
        label_map[:, :, 10:] = 1
        label_map[0, 0, 0] = 3
        rows = sample_foreground(label_map)
        np.testing.assert_array_equal(rows, sample_foreground(np.asfortranarray(label_map)))
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(np.unique(rows[0], return_counts=True), [[1, 3], [10_000, 1]])
        np.testing.assert_array_equal(label_map[tuple(rows[1:])], rows[0])
        assert len(np.unique(rows, axis=1).T) == 10_001  # no voxel twice
        drawn = rows[1:, :10_000]
        np.testing.assert_allclose(drawn.mean(axis=1), [19.5, 19.5, 24.5], atol=0.5)

    def test_may_be_empty_or_lack_a_class(self, dataset: Dataset, tmp_path: Path) -> None:
        case = dataset.cases[0]
        label_map = np.zeros((12, 12, 12), np.uint8)
        nib.save(nib.Nifti1Image(label_map, np.diag([1.0, 1, 2, 1])), case.label_path)
        assert prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache").foreground() == {}
        label_map[5:8, 5, 5] = 9
        nib.save(nib.Nifti1Image(label_map, np.diag([1.0, 1, 2, 1])), case.label_path)
        foreground = prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache").foreground()
        assert list(foreground) == [2]
        assert foreground[2].shape == (6, 3)


class TestIgnoredVoxels:
    """Value 9, so far the class "right", marks what nobody annotated."""

    @pytest.fixture
    def sparse(self, dataset: Dataset) -> Dataset:
        return replace(dataset, class_names=("background", "left"), label_values=(0, 7), ignore_value=9)

    def test_they_are_no_foreground(self, sparse: Dataset, tmp_path: Path) -> None:
        ready = prepare_case(sparse.cases[0], sparse, PREPROCESSING, tmp_path / "cache")
        label_map = ready.label_map()
        assert set(np.unique(label_map)) == {0, 1, 2}
        foreground = ready.foreground()
        assert set(foreground) == {1}
        np.testing.assert_array_equal(foreground[1], np.argwhere(label_map == 1))

    def test_annotated_background_is_listed(self, sparse: Dataset, tmp_path: Path) -> None:
        ready = prepare_case(sparse.cases[0], sparse, PREPROCESSING, tmp_path / "cache")
        np.testing.assert_array_equal(ready.annotated_background(), np.argwhere(ready.label_map() == 0))

    def test_without_such_a_label_no_background_is_listed(self, dataset: Dataset, tmp_path: Path) -> None:
        ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        assert ready.annotated_background().shape == (0, 3)

    def test_at_most_ten_thousand_background_voxels_are_drawn(self) -> None:
        label_map = np.zeros((30, 30, 30), np.uint8)
        label_map[:10] = 2
        label_map[20, 20, 20] = 1
        rows = sample_foreground(label_map, ignore_class=2)
        np.testing.assert_array_equal(np.unique(rows[0], return_counts=True), [[0, 1], [10_000, 1]])
        np.testing.assert_array_equal(label_map[tuple(rows[1:])], rows[0])

    def test_everything_ignored(self) -> None:
        assert sample_foreground(np.full((2, 2, 2), 3, np.uint8), ignore_class=3).shape == (4, 0)

    def test_only_the_ignore_label_changes_the_key(self, sparse: Dataset, tmp_path: Path) -> None:
        """Regions leave the prepared files as they are, which the key is of."""
        case, cache = sparse.cases[0], tmp_path / "cache"
        as_class = replace(sparse, class_names=("background", "left", "rest"), label_values=(0, 7, 9))
        whole = replace(as_class, ignore_value=None, regions=(Region("both", (1, 2), 1),))
        without = replace(as_class, ignore_value=None)
        prepare_case(case, sparse, PREPROCESSING, cache)
        assert len(entries(cache)) == 1
        prepare_case(case, without, PREPROCESSING, cache)
        prepare_case(case, whole, PREPROCESSING, cache)
        assert len(entries(cache)) == 2


class TestStaleness:
    def test_an_unchanged_case_is_not_prepared_again(self, dataset: Dataset, tmp_path: Path) -> None:
        first = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        before = first.image_path.stat()
        assert prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache") == first
        after = first.image_path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_the_folder_of_the_dataset_does_not_matter(self, dataset: Dataset, tmp_path: Path) -> None:
        first = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        moved = dataset.root.rename(tmp_path / "moved")
        case = dataset.cases[0]
        case = replace(
            case, image_paths=(moved / case.image_paths[0].name,), label_path=moved / case.label_path.name
        )
        assert prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache") == first

    @pytest.mark.parametrize("which", ["image", "label map"])
    def test_an_edited_file_is_prepared_anew(self, dataset: Dataset, tmp_path: Path, which: str) -> None:
        case = dataset.cases[0]
        first = prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache")
        path = case.image_paths[0] if which == "image" else case.label_path
        times = path.stat()
        array = np.asanyarray(nib.load(path).dataobj).copy()
        array[6, 6, 6] = 7 if array[6, 6, 6] != 7 else 9
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # an old date does not hide the edit
        second = prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache")
        assert second.image_path != first.image_path
        assert not np.array_equal(
            *(ready.image() if which == "image" else ready.label_map() for ready in (first, second))
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"spacing_mm": (1, 1, 1.001)},
            {"crop": "none"},
            {"intensity": (IntensityScheme(scheme="zscore_nonzero"),)},
            {"intensity": (IntensityScheme(scheme="ct", low=0, high=50, mean=20, std=5),)},
        ],
    )
    def test_a_changed_option_is_prepared_anew(
        self, dataset: Dataset, tmp_path: Path, change: dict[str, object]
    ) -> None:
        changed = PREPROCESSING.model_copy(update=change)
        first, second = (
            prepare_case(dataset.cases[0], dataset, options, tmp_path / "cache")
            for options in (PREPROCESSING, changed)
        )
        assert second.image_path != first.image_path
        channels, _ = read_labelled_case(dataset.cases[0], dataset)
        np.testing.assert_array_equal(second.image(), prepare_images(channels, changed).array)

    def test_changed_label_values_are_prepared_anew(self, dataset: Dataset, tmp_path: Path) -> None:
        swapped = replace(dataset, label_values=(0, 9, 7))
        first = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        second = prepare_case(dataset.cases[0], swapped, PREPROCESSING, tmp_path / "cache")
        np.testing.assert_array_equal(first.label_map() == 1, second.label_map() == 2)
        assert (first.label_map() == 1).any()

    def test_the_data_file_of_an_mhd_header_counts(self, dataset: Dataset, tmp_path: Path) -> None:
        header, data = tmp_path / "scan.mhd", tmp_path / "voxels.raw"
        header.write_text(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "TransformMatrix = -1 0 0 0 -1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\n"
            "DimSize = 12 12 12\nElementType = MET_FLOAT\nElementDataFile = voxels.raw\n"
        )
        case = replace(dataset.cases[0], image_paths=(header,))
        images = []
        for value in (1, 2):
            scan = np.ones((12, 12, 12), np.float32)
            scan[0] += value
            scan[1] -= value / 2
            data.write_bytes(scan.tobytes())
            images.append(prepare_case(case, dataset, PREPROCESSING, tmp_path / "cache"))
        assert images[0].image_path != images[1].image_path


class TestInterruption:
    @pytest.mark.parametrize("file", FILES)
    @pytest.mark.parametrize("damage", ["truncated", "removed"])
    def test_a_damaged_entry_is_made_again(
        self, dataset: Dataset, tmp_path: Path, file: str, damage: str
    ) -> None:
        ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        path = ready.image_path.parent / file
        whole = path.read_bytes()
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(whole[: len(whole) // 2])
        again = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        assert again == ready
        assert path.read_bytes() == whole

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"sizes": {}}', '{"spacing_mm": [1], "sizes": 3}'])
    def test_a_damaged_description_is_made_again(self, dataset: Dataset, tmp_path: Path, text: str) -> None:
        ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
        description = ready.image_path.parent / "case.json"
        whole = description.read_text()
        description.write_text(text)
        assert prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache") == ready
        assert description.read_text() == whole
        assert json.loads(whole)["spacing_mm"] == [1.0, 1.0, 1.0]

    def test_what_a_killed_run_leaves_is_not_believed(self, dataset: Dataset, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        case = write_case(dataset.root, "large", 5, size=60)
        context = multiprocessing.get_context("fork")
        expected = prepare_case(case, dataset, PREPROCESSING, tmp_path / "undisturbed")
        for attempt in range(4):
            before = count_files(cache)
            process = context.Process(target=prepare_case, args=(case, dataset, PREPROCESSING, cache))
            process.start()
            # Killed as soon as the first, second or third file is there, or some time later.
            while process.is_alive() and count_files(cache) <= before + attempt % 3:
                pass
            process.kill()
            process.join()
        ready = prepare_case(case, dataset, PREPROCESSING, cache)
        for path, twin in zip(paths_of(ready), paths_of(expected), strict=True):
            assert path.read_bytes() == twin.read_bytes()

    def test_two_processes_may_prepare_the_same_case(self, dataset: Dataset, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        arguments = (dataset.cases, dataset, PREPROCESSING, tmp_path / "cache")
        processes = [context.Process(target=prepare_cases, args=arguments) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0, 0]
        assert len(entries(tmp_path / "cache")) == 3  # and nothing temporary is left
        assert all(name.startswith("case_") for name in entries(tmp_path / "cache"))

    def test_a_case_that_fails_leaves_nothing(self, dataset: Dataset, tmp_path: Path) -> None:
        path = dataset.cases[1].image_paths[0]
        image = nib.load(path)
        array = image.get_fdata(dtype=np.float32)
        array[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(array, image.affine), path)
        with pytest.raises(DataError, match="'case_1'"):
            prepare_cases(dataset.cases, dataset, PREPROCESSING, tmp_path / "cache")
        assert [name.rpartition("-")[0] for name in entries(tmp_path / "cache")] == ["case_0"]


def test_a_case_without_a_label_map_is_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'case_0' has no label map"):
        prepare_case(replace(dataset.cases[0], label_path=None), dataset, PREPROCESSING, tmp_path / "cache")


def test_a_missing_file_is_named(dataset: Dataset, tmp_path: Path) -> None:
    dataset.cases[0].image_paths[0].unlink()
    with pytest.raises(DataError, match=r"case_0\.nii\.gz"):
        prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")


def test_a_deleted_cache_is_told_so(dataset: Dataset, tmp_path: Path) -> None:
    ready = prepare_case(dataset.cases[0], dataset, PREPROCESSING, tmp_path / "cache")
    ready.image_path.unlink()
    with pytest.raises(DataError, match=r"image\.npy cannot be read"):
        ready.image()


def test_real_cases(data_folder: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data_folder / "Task04_Hippocampus")
    prepared = prepare_cases(dataset.cases[:2], dataset, PREPROCESSING, tmp_path / "cache")
    for case, ready in zip(dataset.cases, prepared, strict=False):
        _, label_map = read_labelled_case(case, dataset)
        counts = {value: len(voxels) for value, voxels in ready.foreground().items()}
        assert counts == {1: (label_map.array == 1).sum(), 2: (label_map.array == 2).sum()}
