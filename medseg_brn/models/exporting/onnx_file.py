"""ONNX files: the network's own layers written down as ONNX operators, one by one.

They are written here and not by torch's exporter, which for this network gives the same operators, but takes
more packages and half a minute, and does not accept sizes of any multiple for every architecture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.models.exporting.bundle_scripts.network import FoldedUNet, ResidualBlock
from medseg_brn.models.exporting.contents import as_properties, describe_contents
from medseg_brn.models.exporting.exportable import Agreement, Exportable, check_agreement
from medseg_brn.volumes.atomic import atomic_path

# Of 2022, and so read by every runtime in use; the operators here have not changed in meaning since.
OPSET = 17
IR_VERSION = 8
AXES = ("batch", "channels", "x", "y", "z")


def write_onnx(exportable: Exportable, path: Path) -> Agreement:
    """Write the network as one ONNX file, whole or not at all, after onnxruntime has run it.

    Input `image`, output `logits`; batch and sizes are free. What they mean is told in the file's
    `metadata_props`.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ModelError: onnxruntime gives other logits than torch.
        DataError: the place cannot be written to.
    """
    _, onnxruntime = _import_packages()
    data = make_onnx(exportable).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    agreement = check_agreement(lambda image: session.run(None, {"image": image})[0], exportable, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return agreement


def make_onnx(exportable: Exportable) -> Any:
    """Return the network as an `onnx.ModelProto`."""
    onnx, _ = _import_packages()
    network = exportable.network
    graph = _Graph(onnx)
    graph.nodes.append(onnx.helper.make_node("Identity", [_add_unet(graph, network)], ["logits"]))
    image = onnx.helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, _free_shape(exportable.description.in_channels)
    )
    logits = onnx.helper.make_tensor_value_info(
        "logits", onnx.TensorProto.FLOAT, _free_shape(exportable.description.num_outputs)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "unet", [image], [logits], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="medseg_brn",
    )
    onnx.helper.set_model_props(model, as_properties(describe_contents(exportable)))
    onnx.checker.check_model(model)
    return model


def _import_packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"Format onnx takes the packages onnx and onnxruntime, and {error.name} is not installed; "
            'install them with pip install "medseg-brn[onnx]", or choose --format torch or monai'
        ) from None
    return onnx, onnxruntime


def _free_shape(channels: int) -> list[int | str]:
    return [channels if axis == "channels" else axis for axis in AXES]


class _Graph:
    """Operators and constants, as they are added."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add an operator, and return the name of its output."""
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Add a constant, and return its name."""
        self.constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _add_unet(graph: _Graph, network: FoldedUNet) -> str:
    """Add what `FoldedUNet.forward` does."""
    features, skips = _add(graph, network.stem, "image", "stem"), []
    for number, level in enumerate(network.encoder):
        features = _add(graph, level, features, f"encoder.{number}")
        skips.append(features)
    features = skips.pop()
    for number, (upsample, decode) in enumerate(zip(network.upsampling, network.decoder, strict=True)):
        features = _add(graph, upsample, features, f"upsampling.{number}")
        features = graph.add("Concat", [features, skips.pop()], f"joined.{number}", axis=1)
        features = _add(graph, decode, features, f"decoder.{number}")
    return _add(graph, network.head, features, "head")


def _add(graph: _Graph, module: Any, features: str, name: str) -> str:
    """Add a module, and return the name of its output; modules' names are those of the weights."""
    if isinstance(module, nn.Sequential):
        for child_name, child in module.named_children():
            features = _add(graph, child, features, f"{name}.{child_name}")
        return features
    if isinstance(module, ResidualBlock):
        body = _add(graph, module.body, features, f"{name}.body")
        shortcut = _add(graph, module.shortcut, features, f"{name}.shortcut")
        return _add(graph, module.activation, graph.add("Add", [body, shortcut], f"{name}.sum"), name)
    if isinstance(module, nn.Identity):
        return features
    if isinstance(module, nn.LeakyReLU):
        return graph.add("LeakyRelu", [features], f"{name}.activated", alpha=module.negative_slope)
    if isinstance(module, nn.AvgPool3d):
        size = list(module.kernel_size)  # type: ignore[arg-type]  # a stride of each axis
        return graph.add("AveragePool", [features], name, kernel_shape=size, strides=size)
    if isinstance(module, nn.GroupNorm):
        return _add_group_norm(graph, module, features, name)
    operators = {
        nn.Conv3d: "Conv",
        nn.ConvTranspose3d: "ConvTranspose",
        nn.InstanceNorm3d: "InstanceNormalization",
    }
    weights = [graph.constant(f"{name}.{key}", value.numpy()) for key, value in module.named_parameters()]
    attributes = (
        {"epsilon": module.eps}
        if isinstance(module, nn.InstanceNorm3d)
        else {"strides": list(module.stride), "pads": [*module.padding, *module.padding]}
    )
    return graph.add(operators[type(module)], [features, *weights], name, **attributes)


def _add_group_norm(graph: _Graph, norm: nn.GroupNorm, features: str, name: str) -> str:
    """Add a norm over the channels of each group: an instance norm whose channels are the groups."""
    groups = norm.num_groups
    shape = graph.add("Shape", [features], f"{name}.shape")
    grouped_shape = graph.constant(f"{name}.grouped_shape", np.array([0, groups, -1], np.int64))
    ones = graph.constant(f"{name}.ones", np.ones(groups, np.float32))
    zeros = graph.constant(f"{name}.zeros", np.zeros(groups, np.float32))
    grouped = graph.add("Reshape", [features, grouped_shape], f"{name}.grouped")
    normalized = graph.add(
        "InstanceNormalization", [grouped, ones, zeros], f"{name}.normalized", epsilon=norm.eps
    )
    back = graph.add("Reshape", [normalized, shape], f"{name}.ungrouped")
    weight = graph.constant(f"{name}.weight", norm.weight.numpy().reshape(-1, 1, 1, 1))
    bias = graph.constant(f"{name}.bias", norm.bias.numpy().reshape(-1, 1, 1, 1))
    return graph.add("Add", [graph.add("Mul", [back, weight], f"{name}.scaled"), bias], name)
