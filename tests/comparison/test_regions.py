"""A comparison on regions that overlap and on slices that nobody annotated."""

import json

import numpy as np
import pytest
import torch

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.comparison.config import load_comparison
from medseg_brn.comparison.execute import run_comparison
from medseg_brn.comparison.run import find_foreground
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume
from medseg_brn.volumes.writing import write_volume

REGIONS = {"background": 0, "head": [1, 2, 3], "deep": [2, 3], "ignore": 9}


def test_foreground_is_what_is_not_background_or_the_likeliest_region():
    probabilities = torch.tensor([[0.7, 0.1], [0.2, 0.6]])
    assert find_foreground(probabilities, Targets(("b", "a"))).tolist() == pytest.approx([0.3, 0.9])
    regions = Targets(("b", "a", "c"), (Region("both", (1, 2), 1), Region("c", (2,), 2)))
    assert find_foreground(probabilities, regions).tolist() == pytest.approx([0.7, 0.6])


@pytest.mark.slow
def test_a_comparison_of_regions_with_ignored_slices(write_comparison_to, tmp_path):
    folder = make_phantom(tmp_path / "heads", cases=4, voxel_mm=6.0)
    for path in (folder / "labelsTr").iterdir():
        volume = read_volume(path)
        array = volume.array.copy()
        array[:, :, ::3] = 9
        path.unlink()
        write_volume(Volume(array, volume.grid), path)
    path = folder / "dataset.json"
    told = json.loads(path.read_text()) | {"labels": REGIONS, "regions_class_order": [1, 2]}
    path.write_text(json.dumps(told))
    config = write_comparison_to(tmp_path / "tiny.yaml", norms=["instance"], batch_sizes=[2])
    override = f"experiment.dataset.path={folder}"
    (result,) = run_comparison(load_comparison(config, [override]), tmp_path / "done", jobs=1)
    assert (result.status, result.error) == ("finished", None)
    assert set(result.class_dice) == {"head", "deep"}
    for name in ("dice_disparity", "train_eval_disparity", "gradient_fidelity", "tile_mismatch"):
        assert result.measurements[name] is not None
    with np.load(tmp_path / "done" / "runs" / result.name / "seams.npz", allow_pickle=False) as seams:
        assert 0 <= seams["full"].min() < seams["full"].max() <= 1
        assert np.abs(seams["full"] - seams["tiled"]).max() > 0
