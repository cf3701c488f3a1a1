"""What the preprocessing options mean for a dataset, and how a model carries them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.dataset import Case, Dataset
from medseg_brn.cases.fingerprint import compute_fingerprint
from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.preprocessing import Preprocessing, resolve_preprocessing
from medseg_brn.config import PreprocessingConfig
from medseg_brn.errors import ConfigError, DataError, ModelError

ZSCORE = IntensityScheme(scheme="zscore")
CT = IntensityScheme(scheme="ct", low=-100.5, high=300.25, mean=50, std=80)


def write_dataset(folder: Path, images: list[np.ndarray], label_maps: list[np.ndarray], **changes) -> Dataset:
    """Writes cases of one channel with voxels of 1 x 1 x 2 mm and lists them."""
    cases = []
    for index, (image, label_map) in enumerate(zip(images, label_maps, strict=True)):
        paths = folder / f"image_{index}.nii", folder / f"label_{index}.nii"
        for path, array in zip(paths, (image, label_map), strict=True):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), path)
        cases.append(Case(f"case_{index}", (paths[0],), paths[1]))
    described = {
        "name": "drawn",
        "root": folder,
        "cases": tuple(cases),
        "class_names": ("background", "organ"),
        "label_values": (0, 1),
        "modalities": ("ct",),
    }
    return Dataset(**(described | changes))


class TestDescription:
    @given(
        spacing_mm=st.tuples(*[st.floats(1e-3, 100)] * 3),
        crop=st.sampled_from(["none", "nonzero", "body"]),
        intensity=st.lists(
            st.sampled_from(["zscore", "zscore_nonzero", "none"]).map(
                lambda name: IntensityScheme(scheme=name)
            )
            | st.builds(
                IntensityScheme,
                scheme=st.just("ct"),
                low=st.floats(-2000, -1),
                high=st.floats(0, 3000),
                mean=st.floats(-1000, 1000),
                std=st.floats(0.1, 1000),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    @settings(deadline=None)
    def test_survives_a_json_file(self, spacing_mm, crop, intensity) -> None:
        original = Preprocessing(spacing_mm=spacing_mm, crop=crop, intensity=tuple(intensity))
        assert Preprocessing.from_dict(json.loads(json.dumps(original.as_dict()))) == original

    def test_is_plain(self) -> None:
        described = Preprocessing(spacing_mm=(1, 1, 3), intensity=(ZSCORE, CT)).as_dict()
        assert described == {
            "spacing_mm": [1.0, 1.0, 3.0],
            "crop": "none",
            "intensity": [
                {"scheme": "zscore"},
                {"scheme": "ct", "low": -100.5, "high": 300.25, "mean": 50.0, "std": 80.0},
            ],
        }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spacing_mm": [1, 1]}, r"spacing_mm.*\[1, 1\]"),
            ({"spacing_mm": [1, 0, 1]}, r"preprocessing\.spacing_mm\.1: .*greater than 0.* 0"),
            ({"spacing_mm": [1, 1, float("inf")]}, r"spacing_mm\.2: .*finite.* inf"),
            ({"crop": "skull"}, "crop: .*'none', 'nonzero' or 'body'.*'skull'"),
            ({"intensity": []}, "intensity: .*at least 1"),
            ({"intensity": [{"scheme": "ct", "low": 1}]}, r"intensity\.0: .*missing: high, mean, std"),
            ({"colour": "red"}, "colour: .*'red'"),
            ({"spacing_mm": None}, "spacing_mm: .*None"),
        ],
    )
    def test_nonsense_is_named(self, change: dict[str, object], message: str) -> None:
        plain = Preprocessing(spacing_mm=(1, 1, 1), intensity=(ZSCORE,)).as_dict() | change
        with pytest.raises(ModelError, match=message):
            Preprocessing.from_dict(plain)

    @pytest.mark.parametrize("plain", [None, [], "zscore", {}])
    def test_something_else_altogether(self, plain: object) -> None:
        with pytest.raises(ModelError, match="preprocessing"):
            Preprocessing.from_dict(plain)


class TestResolve:
    @pytest.fixture
    def ct_dataset(self, tmp_path: Path) -> Dataset:
        """Foreground values 0 to 99 in one case and 100 to 199 in the other; elsewhere air."""
        images, label_maps = [], []
        for first in (0, 100):
            image = np.full((10, 10, 2), -1000, np.int16)
            image[:, :, 0] = np.arange(first, first + 100).reshape(10, 10)
            images.append(image)
            label_maps.append((image > -1000).astype(np.uint8))
        return write_dataset(tmp_path, images, label_maps)

    def test_ct_by_hand(self, ct_dataset: Dataset) -> None:
        fingerprint = compute_fingerprint(ct_dataset, ct_dataset.cases)
        preprocessing = resolve_preprocessing(PreprocessingConfig(), ct_dataset, fingerprint)
        assert preprocessing.spacing_mm == (1, 1, 2)
        assert preprocessing.crop == "none"
        (scheme,) = preprocessing.intensity
        assert scheme.scheme == "ct"
        # Of 0, 1 … 199: half a percent is 0.995 steps from either end; the variance is (200² - 1) / 12.
        assert scheme.low == pytest.approx(0.995, abs=0.1)
        assert scheme.high == pytest.approx(198.005, abs=0.1)
        assert scheme.mean == pytest.approx(99.5, abs=0.1)
        assert scheme.std == pytest.approx(np.sqrt((200**2 - 1) / 12), abs=0.5)

    @pytest.mark.parametrize(
        ("modality", "option", "expected"),
        [
            ("mri", "auto", "zscore"),
            ("ct", "auto", "ct"),
            ("mri", "zscore_nonzero", "zscore_nonzero"),
            ("mri", "ct", "ct"),
            ("ct", "none", "none"),
        ],
    )
    def test_scheme_by_modality(self, ct_dataset: Dataset, modality, option, expected) -> None:
        fingerprint = compute_fingerprint(ct_dataset, ct_dataset.cases)
        dataset = write_dataset(ct_dataset.root, [], [], modalities=(modality,))
        config = PreprocessingConfig(intensity=option, spacing_mm=(0.5, 0.5, 1.5))
        preprocessing = resolve_preprocessing(config, dataset, fingerprint)
        assert preprocessing.intensity[0].scheme == expected
        assert preprocessing.spacing_mm == (0.5, 0.5, 1.5)

    def test_body_needs_ct(self, ct_dataset: Dataset) -> None:
        fingerprint = compute_fingerprint(ct_dataset, ct_dataset.cases)
        config = PreprocessingConfig(crop="body")
        assert resolve_preprocessing(config, ct_dataset, fingerprint).crop == "body"
        mri = write_dataset(ct_dataset.root, [], [], modalities=("mri",))
        with pytest.raises(ConfigError, match=r"preprocessing\.crop is 'body'.*'mri' in dataset 'drawn'"):
            resolve_preprocessing(config, mri, fingerprint)

    def test_axes_that_differ_from_file_to_file_need_a_given_voxel_size(self, ct_dataset: Dataset) -> None:
        fingerprint = compute_fingerprint(ct_dataset, ct_dataset.cases)
        with pytest.raises(ConfigError, match=r"give preprocessing\.spacing_mm"):
            resolve_preprocessing(PreprocessingConfig(orientation="stored"), ct_dataset, fingerprint)
        given = PreprocessingConfig(orientation="stored", spacing_mm=(1, 2, 3))
        assert resolve_preprocessing(given, ct_dataset, fingerprint).spacing_mm == (1, 2, 3)

    def test_a_ct_without_contrast_is_refused(self, tmp_path: Path) -> None:
        image = np.full((4, 4, 4), 17, np.int16)
        dataset = write_dataset(tmp_path, [image], [np.ones((4, 4, 4), np.uint8)])
        fingerprint = compute_fingerprint(dataset, dataset.cases)
        with pytest.raises(DataError, match=r"Channel 0 has the value 17"):
            resolve_preprocessing(PreprocessingConfig(), dataset, fingerprint)
