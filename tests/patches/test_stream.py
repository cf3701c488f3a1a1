"""Sampling of training patches, against answers worked out by hand and properties of any volume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.cases.targets import Targets
from medseg_brn.config import AugmentationConfig, PatchesConfig
from medseg_brn.errors import DataError
from medseg_brn.patches.stream import MicroBatches, PatchStream, collate_patches, load_batches


def make_case(folder: Path, name: str, shape=(12, 10, 8), seed: int = 0) -> PreparedCase:
    """A prepared case whose image tells each voxel's own place, with one foreground box."""
    folder = folder / name
    folder.mkdir(parents=True)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) + 10_000 * seed
    label_map = np.zeros(shape, np.uint8)
    label_map[2:4, 3:6, 1:3] = 1
    voxels = np.argwhere(label_map == 1).T
    np.save(folder / "image.npy", image)
    np.save(folder / "label_map.npy", label_map)
    np.save(folder / "foreground.npy", np.vstack([np.ones(voxels.shape[1]), voxels]).astype(np.int32))
    paths = (folder / "image.npy", folder / "label_map.npy", folder / "foreground.npy")
    return PreparedCase(name, *paths, spacing_mm=(1.0, 1.0, 1.0))


def make_cases(folder: Path, count: int) -> list[PreparedCase]:
    return [make_case(folder, f"case{number}", seed=number) for number in range(count)]


TARGETS = Targets(("background", "box"))
PLAIN = PatchesConfig(size=(4, 4, 4), augmentation=None)
AUGMENTED = PatchesConfig(
    size=(6, 6, 6),
    augmentation=AugmentationConfig(spatial_probability=1, intensity_probability=1, flip_axes=(0, 1)),
)


@pytest.mark.parametrize("config", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_a_patch_is_a_function_of_seed_and_index(tmp_path, config):
    cases = make_cases(tmp_path, 3)
    first, second = PatchStream(cases, config, 5, TARGETS), PatchStream(cases, config, 5, TARGETS)
    forwards = [first[index] for index in range(8)]
    backwards = [second[index] for index in reversed(range(8))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one["case"] == other["case"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    other_seed = PatchStream(cases, config, 6, TARGETS)
    assert any(not torch.equal(other_seed[i]["image"], forwards[i]["image"]) for i in range(8))


def test_every_case_is_seen_once_per_epoch(tmp_path):
    stream = PatchStream(make_cases(tmp_path, 5), PLAIN, 1, TARGETS)
    epochs = [[stream[5 * epoch + place]["case"] for place in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [f"case{number}" for number in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_image_and_label_map_are_cut_at_the_same_place(tmp_path):
    case = make_case(tmp_path, "a")
    patch = PatchStream([case], PLAIN, 0, TARGETS)[3]
    corner = np.argwhere(case.image()[0] == patch["image"][0, 0, 0, 0].item())[0]
    window = tuple(slice(start, start + 4) for start in corner)
    assert_array_equal(patch["image"][0], case.image()[0][window])
    assert_array_equal(patch["label"][0], case.label_map()[window])


def test_an_unreadable_case_arrives_as_an_error_with_its_name(tmp_path):
    cases = make_cases(tmp_path, 2)
    cases[1].image_path.write_bytes(b"broken")
    stream = PatchStream(cases, PLAIN, 0, TARGETS)
    batch = collate_patches([stream[0], stream[1]])
    assert isinstance(batch, DataError)
    assert "case1" in str(batch)


def test_no_cases_is_an_error():
    with pytest.raises(DataError, match="no training cases"):
        PatchStream([], PLAIN, 0, TARGETS)


@given(
    batch_size=st.integers(1, 4),
    world_size=st.integers(1, 3),
    first=st.integers(0, 5),
    count=st.integers(0, 5),
)
def test_processes_share_the_stream_without_gap_or_overlap(batch_size, world_size, first, count):
    seen = [
        index
        for rank in range(world_size)
        for batch in MicroBatches(first, first + count, batch_size, rank, world_size)
        for index in batch
    ]
    per_pass = batch_size * world_size
    assert sorted(seen) == list(range(first * per_pass, (first + count) * per_pass))


def test_a_class_of_few_cases_is_met_as_often_as_any_other(tmp_path):
    cases = make_cases(tmp_path, 9)
    rare = make_case(tmp_path, "rare", seed=9)
    rows = np.load(rare.foreground_path)
    rows[0] = 2
    np.save(rare.foreground_path, rows)
    config = PLAIN.model_copy(update={"foreground_fraction": 1.0, "foreground_by": "class"})
    stream = PatchStream([*cases, rare], config, 0, TARGETS)
    drawn = [stream[index]["case"] for index in range(400)]
    assert 150 < drawn.count("rare") < 250
    by_case = PatchStream([*cases, rare], PLAIN, 0, TARGETS)
    assert [by_case[index]["case"] for index in range(10)].count("rare") == 1


def test_every_patch_has_a_voxel_that_is_annotated(tmp_path):
    case = make_case(tmp_path, "case", shape=(40, 40, 40))
    label_map = np.load(case.label_path)
    label_map[label_map == 0] = 2  # to be ignored: no background is annotated, and no patch is to look at it
    np.save(case.label_path, label_map)
    config = PLAIN.model_copy(update={"foreground_fraction": 0.0})
    stream = PatchStream([case], config, 0, Targets(TARGETS.class_names, ignore_class=2))
    assert all((stream[index]["label"] == 1).any() for index in range(20))


def make_sites(folder: Path, **counts: int) -> list[PreparedCase]:
    """As many cases of each site, `a0`, `a1` … of site `a`; the image of each is its own."""
    names = [(f"{site}{number}", site) for site, count in counts.items() for number in range(count)]
    return [replace(make_case(folder, name, seed=seed), site=site) for seed, (name, site) in enumerate(names)]


def read_batches(cases, count, batch_size=2, seed=0, **options):
    config = PLAIN.model_copy(update=options)
    return list(load_batches(PatchStream(cases, config, seed, TARGETS, batch_size), 0, count, batch_size))


@pytest.mark.parametrize("kind", ["balanced", "pure"])
def test_every_site_is_met_as_often_whatever_its_number_of_cases(tmp_path, kind):
    batches = read_batches(make_sites(tmp_path, a=1, b=5), 20, sites=kind)
    for batch in batches:
        assert batch["sites"] == [case[0] for case in batch["cases"]]
        assert len(set(batch["sites"])) == (2 if kind == "balanced" else 1)
    drawn = [case for batch in batches for case in batch["cases"]]
    assert drawn.count("a0") == 20
    of_b = [case for case in drawn if case.startswith("b")]
    epochs = [of_b[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [f"b{number}" for number in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("kind", ["balanced", "pure"])
def test_a_patch_of_a_turn_is_a_function_of_seed_and_index(tmp_path, kind):
    cases = make_sites(tmp_path, a=2, b=3, c=1)
    config = PLAIN.model_copy(update={"sites": kind})
    whole = PatchStream(cases, config, 4, TARGETS, 2)
    resumed = PatchStream(cases, config, 4, TARGETS, 2)
    for index in (17, 3, 0, 8):  # as another process, or a resumed run, may ask
        assert torch.equal(whole[index]["image"], resumed[index]["image"])
        assert whole[index]["case"] == resumed[index]["case"]


def test_sites_of_equal_sizes_are_not_shuffled_alike(tmp_path):
    stream = PatchStream(
        make_sites(tmp_path, a=6, b=6), PLAIN.model_copy(update={"sites": "pure"}), 0, TARGETS
    )
    drawn = [stream[index]["case"] for index in range(12)]
    orders = [[case[1] for case in drawn if case[0] == site] for site in "ab"]
    assert orders[0] != orders[1]


def test_a_drawn_class_is_one_that_the_site_has(tmp_path):
    cases = make_sites(tmp_path, a=2, b=2)
    for case in (*cases[:2], cases[3]):  # of site a none has class 1, of site b one
        rows = np.load(case.foreground_path)
        rows[0] = 2
        np.save(case.foreground_path, rows)
    options = {"sites": "pure", "foreground_fraction": 1.0, "foreground_by": "class"}
    drawn = [case for batch in read_batches(cases, 200, **options) for case in batch["cases"]]
    assert [case[0] for case in drawn].count("a") == 200
    of_b = [case for case in drawn if case[0] == "b"]
    assert 70 < of_b.count("b0") < 130, "its two classes are drawn evenly"
    assert {case for case in drawn if case[0] == "a"} == {"a0", "a1"}


def test_cases_without_a_site_cannot_take_turns(tmp_path):
    cases = [*make_sites(tmp_path, a=2), make_case(tmp_path, "lost")]
    with pytest.raises(DataError, match=r"patches\.sites=balanced .* 1 of 3 name none \(lost\)"):
        PatchStream(cases, PLAIN.model_copy(update={"sites": "balanced"}), 0, TARGETS)
