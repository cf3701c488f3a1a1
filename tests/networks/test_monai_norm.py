"""Importing the package is enough for MONAI's networks to take the layer, whichever comes first."""

import subprocess
import sys

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn

import medseg_brn  # noqa: F401 (registers the layer)
from medseg_brn.networks.batch_renorm import BatchRenorm2d, BatchRenorm3d


@pytest.mark.parametrize(
    "network",
    [
        UNet(3, 1, 2, (4, 8), (2,), norm="batchrenorm"),
        UNet(3, 1, 2, (4, 8), (2,), norm=("batchrenorm", {"r_max": 2.0, "schedule": (0, 0, 0)})),
        DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], norm_name="batchrenorm"),
        SegResNet(3, 8, 1, 2, norm="batchrenorm"),
    ],
)
def test_monai_networks_train_one_step(network: nn.Module) -> None:
    layers = [layer for layer in network.modules() if isinstance(layer, BatchRenorm3d)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = [layer.weight.clone() for layer in layers]
    network(torch.randn(2, 1, 16, 16, 16)).square().mean().backward()
    optimizer.step()
    assert layers and all(layer.num_batches_tracked == 1 for layer in layers)
    assert any(not torch.equal(old, layer.weight) for old, layer in zip(before, layers, strict=True))


def test_options_and_dimensions_reach_the_layer() -> None:
    network = UNet(2, 1, 2, (4, 8), (2,), norm=("batchrenorm", {"r_max": 2.0}))
    layers = [layer for layer in network.modules() if isinstance(layer, BatchRenorm2d)]
    assert layers and all(layer.r_max == 2.0 for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import medseg_brn; from monai.networks.layers import Norm",
        "from monai.networks.layers import Norm; import medseg_brn",
    ],
)
def test_order_of_imports_does_not_matter(imports: str) -> None:
    code = f"{imports}; print(Norm['batchrenorm', 3].__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "BatchRenorm3d"


def test_importing_the_package_imports_neither_torch_nor_monai() -> None:
    code = "import sys, medseg_brn; print([name for name in ('torch', 'monai') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
