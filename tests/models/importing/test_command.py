"""`medseg-brn models import`, as real processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from medseg_brn.volumes.nifti import write_nifti
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_a_results_folder_is_imported_and_segments(save_nnunet, tmp_path):
    folder, _ = save_nnunet(residual=True)
    done = run("models", "import", folder, "-o", tmp_path / "model", "--orientation", "LPS")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'model'}: imported from {folder}" in done.stdout
    assert "infer --mirror 1,2" in done.stdout
    values = np.random.default_rng(0).normal(50, 20, (20, 14, 9)).astype(np.float32)
    write_nifti(values, Grid(values.shape, np.diag((1.25, 1, 1.5, 1))), tmp_path / "scan.nii.gz")
    done = run("infer", tmp_path / "model", tmp_path / "scan.nii.gz", "-o", tmp_path / "labels.nii.gz")
    assert done.returncode == 0, done.stderr
    labels = read_volume(tmp_path / "labels.nii.gz")
    assert labels.shape == (20, 14, 9)
    assert set(np.unique(labels.array)) <= {0, 1, 2}
    shown = run("models", "show", tmp_path / "model")
    assert "residual encoder, norm instance" in " ".join(shown.stdout.split())


class _Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("changes", [{"logging": _Payload()}, {"network_weights": {"stem": _Payload()}}])
def test_a_hostile_checkpoint_is_refused_in_one_message(save_nnunet, tmp_path, changes):
    folder, _ = save_nnunet(changes=changes)
    done = run("models", "import", folder, "-o", "model", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("medseg-brn: ")
    assert "checkpoint_final.pth is refused: it wants" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
