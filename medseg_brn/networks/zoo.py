"""Networks of MONAI's zoo, by name: those that segment volumes, made of plain arguments only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medseg_brn.errors import ConfigError

_ENDS = frozenset({"spatial_dims", "in_channels", "out_channels"})
_UNET = _ENDS | {"channels", "strides", "kernel_size", "up_kernel_size", "dropout"}
_SEGRESNET = _ENDS | {"init_filters", "act", "norm", "blocks_down", "blocks_up", "upsample_mode"}

# What each network may be told. Arguments that are functions or classes, or change what comes out, are not
# among them.
ZOO: Mapping[str, frozenset[str]] = {
    "UNet": _UNET | {"num_res_units", "act", "norm", "bias", "adn_ordering"},
    "AttentionUnet": _UNET,
    "BasicUNet": _ENDS | {"features", "act", "norm", "bias", "dropout", "upsample"},
    "DynUNet": _ENDS
    | {"kernel_size", "strides", "upsample_kernel_size", "filters", "dropout", "norm_name", "act_name"}
    | {"deep_supervision", "deep_supr_num", "res_block", "trans_bias"},
    "SegResNet": _SEGRESNET | {"dropout_prob", "norm_name", "num_groups", "use_conv_final"},
    "SegResNetDS": _SEGRESNET | {"dsdepth", "resolution"},
    "VNet": _ENDS | {"act", "dropout_prob", "dropout_prob_down", "dropout_prob_up", "dropout_dim", "bias"},
    "UNETR": _ENDS
    | {"img_size", "feature_size", "hidden_size", "mlp_dim", "num_heads", "proj_type", "norm_name"}
    | {"conv_block", "res_block", "dropout_rate", "qkv_bias"},
    "SwinUNETR": _ENDS
    | {"img_size", "patch_size", "depths", "num_heads", "window_size", "qkv_bias", "mlp_ratio"}
    | {"feature_size", "norm_name", "drop_rate", "attn_drop_rate", "dropout_path_rate", "normalize"}
    | {"patch_norm", "use_checkpoint", "downsample", "use_v2"},
}
# Numbers of layers, each of which takes time to make even where it has no values.
_COUNTS = ("num_res_units", "blocks_down", "blocks_up", "depths", "dsdepth", "deep_supr_num")
MOST_LAYERS = 64
MOST_CHANNELS = 1 << 16
MOST_VALUES = 1000


class ZooNetwork(nn.Module):
    """A network of MONAI's zoo with what inference asks of a network: its channels, and what sizes it takes.

    Attributes:
        name: of the network.
        in_channels: channels of the image.
        num_classes: channels of the logits.
    """

    def __init__(self, name: str, network: nn.Module, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.name, self.network = name, network
        self.in_channels, self.num_classes = in_channels, num_classes

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, X, Y, Z) -> logits (N, num_classes, X, Y, Z), in training the finest ones."""
        logits = self.network(image)
        if isinstance(logits, list | tuple):  # deep supervision, while training
            return logits[0]
        return logits[:, 0] if logits.dim() == 6 else logits

    @torch.no_grad()
    def check_patch_size(self, size: Sequence[int]) -> None:
        """Raise ConfigError unless patches of this size give logits of this size."""
        like, training = next(self.parameters()), self.training
        try:
            given = tuple(self.eval()(like.new_empty((1, self.in_channels, *size))).shape)
        except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"{self.name} does not take patches of {tuple(size)} voxels: {reason}"
            ) from None
        finally:
            self.train(training)
        if given != (1, self.num_classes, *size):
            raise ConfigError(
                f"{self.name} makes logits of shape {given} of a patch of {tuple(size)} voxels, and not "
                f"{(1, self.num_classes, *size)}"
            )


def make_zoo_network(
    name: str, arguments: Mapping[str, Any], in_channels: int, num_classes: int
) -> ZooNetwork:
    """Make a network of MONAI's zoo.

    Args:
        name: one of `ZOO`.
        arguments: plain values, as JSON has them, for the network's constructor; `in_channels`,
            `out_channels` and `spatial_dims` may be left out.
        in_channels: channels of the image.
        num_classes: channels of the logits.

    Raises:
        ConfigError: another network or argument, or values that make no network.
    """
    import monai.networks.nets as nets  # takes a second, and few models need it

    check_zoo_arguments(name, arguments)
    fixed = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": num_classes}
    for key, value in fixed.items():
        if arguments.get(key, value) != value:
            raise ConfigError(f"{name}: {key} is {arguments[key]!r}, and here it is {value}")
    given = {key: _as_tuples(value) for key, value in arguments.items()}
    if name == "SwinUNETR":
        given.pop("img_size", None)  # of older versions, which only checked it
    try:
        with _LinspaceWithValues():
            network = getattr(nets, name)(**{**given, **fixed})
    except ImportError as error:  # MONAI's own text goes on with advice and a traceback
        raise ConfigError(
            f"{name} takes a package that is not here: {str(error).partition('(')[2].partition(')')[0]}; "
            "install it"
        ) from None
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"{name} cannot be made of {dict(arguments)}: {error}") from None
    return ZooNetwork(name, network, in_channels, num_classes)


class _LinspaceWithValues(TorchFunctionMode):
    """Whatever the device: SwinUNETR reads its rates of stochastic depth from what `linspace` gives."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**own, **(kwargs or {})})


def check_zoo_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError for a network or an argument that is not in `ZOO`, or numbers beyond any use."""
    if name not in ZOO:
        raise ConfigError(f"{name!r} is none of the networks of MONAI known here: {', '.join(ZOO)}")
    for key, value in arguments.items():
        if key not in ZOO[name]:
            known = ", ".join(sorted(ZOO[name]))
            raise ConfigError(f"{name}: {key} is none of the arguments known here: {known}")
        values = _list_values(value)
        most = MOST_LAYERS if key in _COUNTS else MOST_CHANNELS
        numbers = [one for one in values if isinstance(one, int | float)]
        if len(values) > MOST_VALUES or any(not math.isfinite(one) or abs(one) > most for one in numbers):
            raise ConfigError(f"{name}: {key} is {str(value)[:60]}, and no number of it may exceed {most}")


def _list_values(value: Any) -> list[Any]:
    """Return all plain values in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [one for part in value for one in _list_values(part)]
    return [value]


def _as_tuples(value: Any) -> Any:
    """Return lists as the tuples that some networks compare with."""
    return tuple(_as_tuples(one) for one in value) if isinstance(value, list | tuple) else value
