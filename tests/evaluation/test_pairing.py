"""Which files go together, and what the classes are called."""

import json
from pathlib import Path

import pytest

from medseg_brn.cases.label_description import Structures
from medseg_brn.errors import DataError
from medseg_brn.evaluation.pairing import find_description, find_label_maps, pair_label_maps, read_structures


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_files_pair_by_name_whatever_their_format(tmp_path):
    predictions = touch(tmp_path / "p", "a.nii.gz", "b.nrrd", "extra.nii")
    references = touch(tmp_path / "r", "a.nii", "b.nii.gz", "c.nii.gz", "notes.txt", "._a.nii.gz")
    pairing = pair_label_maps(predictions, references)
    assert [(pair.case, pair.prediction.name, pair.reference.name) for pair in pairing.pairs] == [
        ("a", "a.nii.gz", "a.nii"),
        ("b", "b.nrrd", "b.nii.gz"),
    ]
    assert pairing.without_reference == ("extra",)
    assert pairing.without_prediction == ("c",)


def test_two_files_pair_whatever_their_names(tmp_path):
    folder = touch(tmp_path, "mine.nii.gz", "truth.nii.gz")
    (pair,) = pair_label_maps(folder / "mine.nii.gz", folder / "truth.nii.gz").pairs
    assert (pair.case, pair.reference.name) == ("mine", "truth.nii.gz")


def test_nothing_pairs(tmp_path):
    predictions, references = touch(tmp_path / "p", "a.nii.gz"), touch(tmp_path / "r", "b.nii.gz")
    with pytest.raises(DataError, match=r"\(a\).*\(b\).*same name"):
        pair_label_maps(predictions, references)


def test_missing_folder_empty_folder_and_double_case(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_label_maps(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no label map.*labelsTr"):
        find_label_maps(touch(tmp_path / "empty", "readme.txt"))
    with pytest.raises(DataError, match=r"'a' has two label maps.*a\.nii and a\.nii\.gz"):
        find_label_maps(touch(tmp_path / "double", "a.nii", "a.nii.gz"))


@pytest.mark.parametrize(
    "labels", [{"0": "background", "2": "tumour", "1": "liver"}, {"background": 0, "tumour": 2, "liver": 1}]
)
def test_class_names_in_both_spellings(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    expected = Structures({"liver": (1,), "tumour": (2,)})
    assert read_structures(tmp_path) == read_structures(tmp_path / "dataset.json") == expected


@pytest.mark.parametrize(("text", "told"), [("{", "not valid JSON"), ("[1]", "holds list"), ("{}", "labels")])
def test_bad_description(tmp_path, text, told):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=told):
        read_structures(tmp_path)


def test_missing_description(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read .*dataset\.json"):
        read_structures(tmp_path)


def test_description_is_found_beside_the_references(tmp_path):
    references = touch(tmp_path / "labelsTr", "a.nii.gz")
    assert find_description(references) is None
    touch(tmp_path, "dataset.json")
    assert find_description(references) == tmp_path / "dataset.json"
    assert find_description(references / "a.nii.gz") == tmp_path / "dataset.json"
    touch(references, "dataset.json")
    assert find_description(references) == references / "dataset.json"


def test_a_description_written_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}', encoding="utf-8-sig")
    assert read_structures(tmp_path) == Structures({"liver": (1,)})


def test_regions_and_the_ignore_label_are_read(tmp_path):
    labels = {"background": 0, "tumour": [1, 2], "core": [2], "ignore": 9}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    assert read_structures(tmp_path) == Structures({"tumour": (1, 2), "core": (2,)}, 9)


def test_class_probabilities_are_no_predictions(tmp_path):
    predictions = touch(
        tmp_path / "p", *("a.nii.gz", "a_probabilities.nii.gz", "b.nrrd", "b_probabilities.nii.gz")
    )
    assert list(find_label_maps(predictions)) == ["a", "b"]
    assert pair_label_maps(predictions, touch(tmp_path / "r", "a.nii", "b.nii")).without_reference == ()
    with pytest.raises(DataError, match="holds no label map"):
        find_label_maps(touch(tmp_path / "only", "a_probabilities.nii.gz"))


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text("case,image,label\na,x.nii,labels/17.nii\nb,y.nii,labels/4.nii\nc,z.nii,\n")
    return path


def test_a_manifest_tells_the_references_of_its_cases(tmp_path, manifest):
    predictions = touch(tmp_path / "p", "b.nii.gz", "c.nii.gz")
    pairing = pair_label_maps(predictions, manifest)
    assert [(pair.case, pair.prediction.name, pair.reference) for pair in pairing.pairs] == [
        ("b", "b.nii.gz", tmp_path / "labels" / "4.nii")
    ]
    assert (pairing.without_reference, pairing.without_prediction) == (("c",), ("a",))


def test_one_prediction_is_found_in_a_manifest_by_its_name(tmp_path, manifest):
    touch(tmp_path, "a.nii.gz", "other.nii.gz")
    (pair,) = pair_label_maps(tmp_path / "a.nii.gz", manifest).pairs
    assert (pair.case, pair.reference.name) == ("a", "17.nii")
    with pytest.raises(DataError, match=r"\(other\).*\(a, b\)"):
        pair_label_maps(tmp_path / "other.nii.gz", manifest)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("case,image\na,x.nii\n", "lists no label map"),
        ("case,image,label\na,x.nii,1.nii\na,y.nii,2.nii\n", "lists case 'a' twice"),
    ],
)
def test_a_manifest_without_references_of_its_own_is_told(tmp_path, manifest, text, told):
    manifest.write_text(text)
    with pytest.raises(DataError, match=told):
        pair_label_maps(touch(tmp_path / "p", "a.nii.gz"), manifest)


def test_the_description_of_a_manifest_has_its_name(tmp_path, manifest):
    touch(tmp_path, "dataset.json")
    assert find_description(manifest) is None
    touch(tmp_path, "cohort.json")
    assert find_description(manifest) == tmp_path / "cohort.json"
