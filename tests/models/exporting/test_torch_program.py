"""Programs of torch.export: read by torch alone, at any size, without a pickle inside."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from medseg_brn.errors import ConfigError
from medseg_brn.models.exporting.export import export_model
from medseg_brn.models.package import load_network

READ = """
import sys, numpy, torch
sys.modules["medseg_brn"] = sys.modules["monai"] = None  # as if they were not installed
program = torch.export.load(sys.argv[1]).module()
for number in range(int(sys.argv[3])):
    image = torch.from_numpy(numpy.load(f"{sys.argv[2]}/image{number}.npy"))
    numpy.save(f"{sys.argv[2]}/logits{number}.npy", program(image).numpy())
"""


def check_in_a_process_of_its_own(trained, path, folder, shapes) -> None:
    expected = []
    for number, shape in enumerate(shapes):
        image = torch.randn(*shape, generator=torch.Generator().manual_seed(number))
        np.save(folder / f"image{number}.npy", image.numpy())
        with torch.inference_mode():
            expected.append(trained(image).numpy())
    command = [sys.executable, "-c", READ, str(path), str(folder), str(len(shapes))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number, logits in enumerate(expected):
        found = np.load(folder / f"logits{number}.npy")
        np.testing.assert_allclose(found, logits, atol=2e-5 * np.abs(logits).max())


@pytest.mark.slow
def test_a_program_says_what_it_takes_and_holds_no_pickle(save_tiny, tmp_path):
    export_model(save_tiny(network={"channels": (4,)}), tmp_path / "model.pt2", "torch")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        parts = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    told = json.loads(parts["extra/medseg_brn.json"])
    assert (told["name"], told["size_multiples"], told["label_values"]) == ("tiny", [1, 1, 1], [0, 2, 500])
    begins_a_pickle = b"\x80\x02"
    assert not [name for name, data in parts.items() if name.endswith((".pkl", ".pt")) and data]
    assert not [name for name, data in parts.items() if data.startswith(begins_a_pickle) and b"." in data]


def test_another_ending_is_refused(save_tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"ends in \.pt2, and the output is .*model\.pt; give .*model\.pt\.pt2"
    ):
        export_model(save_tiny(), tmp_path / "model.pt", "torch")


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {
            "channels": (4, 6, 8),
            "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
            "encoder": "residual",
            "deep_supervision": True,
        },
        {"channels": (4, 6), "norm": "group"},
    ],
    ids=["residual", "group norm"],
)
def test_torch_alone_gives_the_trained_networks_logits(save_tiny, tmp_path, network):
    folder = save_tiny(network=network)
    export_model(folder, tmp_path / "model.pt2", "torch")
    trained = load_network(folder)[0].eval()
    x, y, z = trained.strides_total
    shapes = [(1, 1, 2 * x, 2 * y, 2 * z), (3, 1, 5 * x, 2 * y, 4 * z)]
    check_in_a_process_of_its_own(trained, tmp_path / "model.pt2", tmp_path, shapes)
