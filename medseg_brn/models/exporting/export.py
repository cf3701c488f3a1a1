"""From a model folder to a file or folder for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from medseg_brn.errors import ConfigError
from medseg_brn.models.exporting.bundle import write_bundle
from medseg_brn.models.exporting.exportable import Agreement, Exportable, load_exportable
from medseg_brn.models.exporting.onnx_file import write_onnx
from medseg_brn.models.exporting.torch_program import write_torch

FormatName = Literal["onnx", "monai", "torch"]

_WRITERS: dict[FormatName, Callable[[Exportable, Path], Agreement]] = {
    "onnx": write_onnx,
    "monai": write_bundle,
    "torch": write_torch,
}
_SUFFIXES: dict[FormatName, str] = {"onnx": ".onnx", "torch": ".pt2"}


def export_model(
    model: Path | str, output: Path | str, format_name: FormatName, site: str | None = None
) -> Agreement:
    """Write a trained model for other programs, whole or not at all.

    Args:
        model: a model folder, or a run folder with one inside.
        output: a folder for `monai`, a file that ends in .onnx for `onnx`, in .pt2 for `torch`.
        format_name: a MONAI bundle, an ONNX file, or a program of torch.export.
        site: whose statistics, of a model that has them of each training site; None takes their mixture.

    Returns:
        How the exported network compares with the trained one.

    Raises:
        ModelError: there is no such model, it is an ensemble or calibrated for int8, or what was exported
            disagrees with it.
        ConfigError: the output has another ending, a package is missing, or the site is unknown.
        DataError: the place cannot be written to.
    """
    output = Path(output)
    suffix = _SUFFIXES.get(format_name)
    if suffix is not None and output.suffix.lower() != suffix:
        raise ConfigError(
            f"Format {format_name} is one file whose name ends in {suffix}, and the output is {output}; "
            f"give {output}{suffix}"
        )
    return _WRITERS[format_name](load_exportable(model, site), output)
