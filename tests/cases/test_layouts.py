"""Three layouts, read as they are."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.label_description import Labels
from medseg_brn.cases.layouts import list_dataset
from medseg_brn.errors import DataError

Maker = Callable[..., Path]


def test_decathlon(make_decathlon: Maker) -> None:
    folder = make_decathlon(cases=2)
    listing = list_dataset(folder)
    assert [case.name for case in listing.cases] == ["p0", "p1"]
    assert listing.cases[1].image_paths == (folder / "./imagesTr/p1.nii.gz",)
    assert listing.cases[1].label_path == folder / "./labelsTr/p1.nii.gz"
    assert (listing.name, listing.licence, listing.root) == ("Blocks", "CC0", folder)
    assert listing.problems == ()


@pytest.mark.parametrize("path", [".", "dataset.json"])
def test_a_folder_and_its_description_are_the_same_dataset(make_decathlon: Maker, path: str) -> None:
    assert len(list_dataset(make_decathlon() / path).cases) == 3


def test_nnunet_version_1_lists_images_without_their_channel(make_decathlon: Maker) -> None:
    folder = make_decathlon(cases=1, modality={"0": "T1", "1": "T2"})
    images = folder / "imagesTr"
    (images / "p0.nii.gz").rename(images / "p0_0000.nii.gz")
    (images / "p0_0001.nii.gz").write_bytes(b"")
    (case,) = list_dataset(folder).cases
    assert (case.name, case.image_paths) == ("p0", (images / "p0_0000.nii.gz", images / "p0_0001.nii.gz"))


def test_nnunet_version_2_lists_cases_by_their_files(make_nnunet: Maker) -> None:
    folder = make_nnunet()
    listing = list_dataset(folder)
    assert [case.name for case in listing.cases] == ["p_0", "p_1"]
    assert [path.name for path in listing.cases[0].image_paths] == ["p_0_0000.nii.gz", "p_0_0001.nii.gz"]
    assert listing.cases[0].label_path == folder / "labelsTr" / "p_0.nii.gz"
    assert listing.channel_names == ("T1", "CT")


def test_nnunet_may_list_files_that_lie_elsewhere(make_nnunet: Maker) -> None:
    entries = {"far": {"images": ["../a.nii", "/data/b.nii"], "label": "../seg.nii"}}
    folder = make_nnunet(dataset=entries, numTraining=1)
    (case,) = list_dataset(folder).cases
    assert case.image_paths == (folder / "../a.nii", Path("/data/b.nii"))
    assert case.label_path == folder / "../seg.nii"


def test_a_channel_that_is_missing_stays_in_the_list(make_nnunet: Maker) -> None:
    folder = make_nnunet()
    (folder / "imagesTr" / "p_1_0001.nii.gz").unlink()
    assert [path.name for path in list_dataset(folder).cases[1].image_paths] == [
        "p_1_0000.nii.gz",
        "p_1_0001.nii.gz",
    ]


def test_test_images_and_hidden_files_are_not_looked_at(make_decathlon: Maker) -> None:
    folder = make_decathlon()
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "p9.nii.gz").write_bytes(b"")
    (folder / "imagesTr" / "._p0.nii.gz").write_bytes(b"a Mac was here")
    assert list_dataset(folder).problems == ()


def test_a_description_that_forgets_files_is_reported(make_decathlon: Maker) -> None:
    folder = make_decathlon(cases=3, training=["imagesTr/p0.nii.gz"])
    messages = [problem.message for problem in list_dataset(folder).problems]
    assert messages == [
        "dataset.json says numTraining 3, but the training list holds 1 cases.",
        "imagesTr holds 2 file(s) of no listed case: p1.nii.gz, p2.nii.gz.",
    ]


def test_nnunet_files_of_no_case_are_reported(make_nnunet: Maker) -> None:
    folder = make_nnunet(numTraining=5)
    (folder / "imagesTr" / "p_0_0002.nii.gz").write_bytes(b"")
    (folder / "labelsTr" / "p_7.nii.gz").write_bytes(b"")
    messages = " ".join(problem.message for problem in list_dataset(folder).problems)
    assert "imagesTr holds 1 file(s) of no listed case: p_0_0002.nii.gz." in messages
    assert "labelsTr holds 1 file(s) of no listed case: p_7.nii.gz." in messages
    assert "numTraining 5, but there are 2 cases" in messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": []}, '"training" lists no cases'),
        ({"training": [{"label": "x"}]}, r"entry 0 is \{'label': 'x'\}; write"),
        ({"training": [17]}, "entry 0 is 17"),
        ({"modality": {"1": "T1"}}, r"channels are \{'1': 'T1'\}; number them from"),
        ({"labels": None}, '"labels" is None'),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(
    make_decathlon: Maker, changes: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_dataset(make_decathlon(**changes))
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_ending": ".png"}, r"no file named CASE_0000.png \(endings found: .nii.gz\)"),
        ({"channel_names": None}, 'no "channel_names"'),
        ({"dataset": {}}, '"dataset" lists no cases'),
        ({"dataset": {"a": {"label": "x"}}}, "KeyError.*images"),
    ],
)
def test_nnunet_descriptions_that_make_no_sense_are_refused(
    make_nnunet: Maker, changes: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list_dataset(make_nnunet(**changes))


def test_broken_json_is_told_with_its_line(make_decathlon: Maker) -> None:
    folder = make_decathlon()
    (folder / "dataset.json").write_text('{\n "name": "Blocks",\n "labels": {"0" "background"}\n}')
    with pytest.raises(DataError, match=r"dataset.json, line 3, column 17 is not valid JSON: Expecting ':'"):
        list_dataset(folder)


@pytest.mark.parametrize(("content", "message"), [("[1, 2]", "holds list"), ("", "line 1, column 1")])
def test_a_description_is_an_object(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        list_dataset(tmp_path)


def test_a_folder_without_a_description_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no dataset\.json and no CSV manifest"):
        list_dataset(tmp_path)
    with pytest.raises(DataError, match=r"There is no dataset at .*nowhere"):
        list_dataset(tmp_path / "nowhere")


# ---------------------------------------------------------------- the CSV manifest


def write_manifest(folder: Path, text: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest_lists_files_relative_to_itself(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path,
        "case,image_1,image_0,label,site,patient,age\n"
        "p1,flair/1.nii,t1/1.nii,/seg/1.nii,Basel,A,71\n"
        "\n"
        "p2,flair/2.nii,t1/2.nii,,,,\n",
    )
    first, second = list_dataset(path).cases
    assert first.image_paths == (tmp_path / "t1/1.nii", tmp_path / "flair/1.nii")
    assert (first.label_path, first.site, first.patient) == (Path("/seg/1.nii"), "Basel", "A")
    assert (second.label_path, second.site, second.patient) == (None, None, None)


def test_image_columns_without_numbers_keep_their_order(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, "image_t2,case,image_flair\na,p1,b\n")
    assert list_dataset(path).cases[0].image_paths == (tmp_path / "a", tmp_path / "b")


def test_the_tenth_channel_follows_the_ninth(tmp_path: Path) -> None:
    columns = [f"image_{n}" for n in (10, 2, 1, 9)]
    path = write_manifest(tmp_path, f"case,{','.join(columns)}\np,{','.join(columns)}\n")
    assert [p.name for p in list_dataset(path).cases[0].image_paths] == [
        "image_1",
        "image_2",
        "image_9",
        "image_10",
    ]


@pytest.mark.parametrize("text", ["\ufeffcase;image\r\np1;a,b.nii\r\n", 'case,image\np1,"a,b.nii"\n'])
def test_spreadsheets_spellings_are_read(tmp_path: Path, text: str) -> None:
    (case,) = list_dataset(write_manifest(tmp_path, text)).cases
    assert (case.name, case.image_paths) == ("p1", (tmp_path / "a,b.nii",))


def test_a_folder_with_one_manifest_is_a_dataset(tmp_path: Path) -> None:
    write_manifest(tmp_path, "case,image\np1,a.nii\n")
    assert list_dataset(tmp_path).name == "cohort"
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(DataError, match=r"holds 2 CSV files: cohort.csv, other.csv; give the path"):
        list_dataset(tmp_path)


def test_a_description_beside_the_manifest_names_classes_and_channels(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, "case,image\np1,a.nii\n")
    content = {"labels": {"background": 0, "liver": 5}, "channel_names": {"0": "CT"}}
    path.with_suffix(".json").write_text(json.dumps(content))
    listing = list_dataset(path)
    assert (listing.labels, listing.channel_names) == (Labels(("background", "liver"), (0, 5)), ("CT",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line names the columns"),
        ("case,image,label\n", "lists no cases"),
        ("name,image\np1,a\n", "has the columns name, image; name them 'case', 'image'"),
        ("case,label\np1,a\n", "has the columns case, label; name them"),
        ("case,image,image\np1,a,b\n", "each once"),
        ("case,image,patients\np1,a,b\n", "has a column 'patients'; rename it to 'patient'"),
        ("case,image,Label\np1,a,b\n", "has a column 'Label'; rename it to 'label'"),
        ("case,image\np1,a\np2,\n", "line 3: 'image' is empty"),
        ("case,image\n\n,a\n", "line 3: 'case' is empty"),
        ("case,image\np1,a,b\n", "line 2 has 3 cells, but the header has 2 columns"),
        ("case,image\n../p1,a\n", "line 2: Case name '../p1' cannot be a file name"),
        ('case,image\np1,"a\n', "cannot be read as a CSV table"),
    ],
)
def test_manifests_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_dataset(write_manifest(tmp_path, text))
    assert "cohort.csv" in str(caught.value)


def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes("case,image\nJosé,a.nii\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        list_dataset(path)


CELLS = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp"), blacklist_characters="/\\\ufeff"),
    min_size=1,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(CELLS.filter(lambda name: name not in {".", ".."}), CELLS, CELLS), min_size=1))
def test_any_cells_survive_quoting(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("case", "image", "label"), *rows])
    folder = tmp_path_factory.mktemp("manifest")
    cases = list_dataset(write_manifest(folder, buffer.getvalue())).cases
    assert [(case.name, case.image_paths, case.label_path) for case in cases] == [
        (name, (folder / image,), folder / label) for name, image, label in rows
    ]
