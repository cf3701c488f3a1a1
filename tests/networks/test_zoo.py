"""Networks of MONAI's zoo by name: the same as MONAI makes, and nothing but plain arguments."""

import monai.networks.nets
import pytest
import torch

from medseg_brn.errors import ConfigError
from medseg_brn.networks.zoo import ZOO, make_zoo_network

SMALL = {
    "UNet": ({"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"}, 16),
    "AttentionUnet": ({"channels": [4, 8], "strides": [2]}, 16),
    "BasicUNet": ({"features": [4, 4, 8, 8, 8, 4], "norm": ["instance", {"affine": True}]}, 32),
    "DynUNet": (
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
            "deep_supervision": True,
        },
        16,
    ),
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, 16),
    "SegResNetDS": ({"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 2}, 16),
    "VNet": ({"act": "relu"}, 32),
    "UNETR": (
        {"img_size": [32, 32, 32], "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2},
        32,
    ),
    "SwinUNETR": ({"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}, 64),
}


def test_every_network_of_the_list_is_tried_here():
    assert SMALL.keys() == ZOO.keys()


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_network_is_monais(name):
    if name.endswith("UNETR"):
        pytest.importorskip("einops")
    arguments, size = SMALL[name]
    torch.manual_seed(0)
    ours = make_zoo_network(name, arguments, 2, 3).eval()
    with torch.device("meta"):
        shapes = make_zoo_network(name, arguments, 2, 3)
        shapes.check_patch_size((size, size, size))
    assert {key: tuple(one.shape) for key, one in shapes.state_dict().items()} == {
        key: tuple(one.shape) for key, one in ours.state_dict().items()
    }
    theirs = getattr(monai.networks.nets, name)(
        **{**arguments, "spatial_dims": 3, "in_channels": 2, "out_channels": 3}
    ).eval()
    theirs.load_state_dict({key.removeprefix("network."): one for key, one in ours.state_dict().items()})
    image = torch.randn(1, 2, size, size, size)
    expected = theirs(image)
    torch.testing.assert_close(ours(image), expected, rtol=0, atol=0)
    assert ours.train()(image).shape == expected.shape  # deep supervision gives the finest logits


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("os.system", {}, "'os.system' is none of the networks of MONAI known here: UNet"),
        ("SegResNet", {"command": "x"}, "SegResNet: command is none of the arguments known here"),
        ("SegResNetDS", {"preprocess": "x"}, "preprocess is none of the arguments"),
        ("SegResNet", {"blocks_down": [1, 10**9]}, "no number of it may exceed 64"),
        ("BasicUNet", {"features": [10**9] * 6}, "no number of it may exceed 65536"),
        ("BasicUNet", {"features": [float("nan")] * 6}, "no number of it may exceed 65536"),
        ("UNet", {"channels": [4] * 2000, "strides": [2] * 1999}, "no number of it may exceed"),
        ("UNet", {"channels": [4, 8]}, "UNet cannot be made of"),
        (
            "UNet",
            {"channels": [4, 8], "strides": [2], "spatial_dims": 2},
            "spatial_dims is 2, and here",
        ),
        ("BasicUNet", {"act": "os.system"}, "BasicUNet cannot be made of"),
    ],
)
def test_what_is_not_known_is_refused_by_name(name, arguments, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        make_zoo_network(name, arguments, 1, 2)


def test_patches_that_do_not_fit_are_refused():
    with torch.device("meta"):
        network = make_zoo_network("UNet", SMALL["UNet"][0], 1, 2)
        with pytest.raises(ConfigError, match=r"UNet does not take patches of \(10, 16, 16\) voxels"):
            network.check_patch_size((10, 16, 16))
