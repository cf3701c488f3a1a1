"""Where a network computes, and in which number format."""

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch

from medseg_brn.errors import ConfigError
from medseg_brn.inference.trials import time_formats
from medseg_brn.networks.quantized_layers import weight_limit

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16", "int8"]
DTYPES: dict[PrecisionName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.uint8,
}

# The instructions that torch's 3D convolutions multiply bf16 numbers with. ARM's are not among them:
# there 3D convolutions in bf16 are plain loops.
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16")


def choose_device(name: DeviceName | str) -> torch.device:
    """Return the device; `auto` is cuda where there is one.

    Raises:
        ConfigError: cuda is asked for where there is none, or the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"Device {name!r} is unknown; choose auto, cpu or cuda")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError("Device cuda was asked for, but torch finds no CUDA GPU here; choose auto or cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def choose_precision(name: PrecisionName | str, device: torch.device) -> torch.dtype:
    """Return the number format that features have; `auto` is what `weigh_precision` finds, never int8.

    Raises:
        ConfigError: bf16 is asked for where it would be emulated, int8 where it cannot be had, or the name is
            unknown.
    """
    if name not in ("auto", *DTYPES):
        raise ConfigError(f"Precision {name!r} is unknown; choose auto, fp32, bf16 or int8")
    if name == "auto":
        return weigh_precision(device)[0]
    if name == "bf16" and not has_native_bf16(device):
        raise ConfigError(
            f"Precision bf16 was asked for, but this {device.type} device would emulate it, slowly; "
            "choose auto or fp32"
        )
    if name == "int8":
        _check_int8(device)
    return DTYPES[cast(PrecisionName, name)]


def _check_int8(device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(
            f"Precision int8 was asked for on device {device.type}, and only the CPU computes in it so far; "
            "choose --device cpu, or another precision"
        )
    if weight_limit() is None:
        raise ConfigError(
            "Precision int8 was asked for, but torch has no working 8-bit convolution for this processor "
            "(it takes oneDNN on x86); choose auto or fp32"
        )


def weigh_precision(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the number format of `auto` and why: bf16 only where it is native and measured to be faster.

    A processor without bf16 instructions would emulate them, several times slower than fp32. One that has
    them is tried, once per process (`time_formats`); for a GPU its compute capability tells enough.
    """
    native = has_native_bf16(device)
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        told = f"the GPU's compute capability is {capability}, and bf16 is native from 8.0 on"
        return (torch.bfloat16 if native else torch.float32), told
    if not native:
        return torch.float32, "the processor has no bf16 instructions that torch could use"
    fp32, bf16 = (time_formats(device)[dtype] for dtype in (torch.float32, torch.bfloat16))
    if math.isinf(bf16):
        return torch.float32, "the processor has bf16 instructions, but torch refuses to use them here"
    faster = bf16 < fp32
    told = (
        f"the processor has bf16 instructions, and a short trial took {1e3 * bf16:.2f} ms in bf16 and "
        f"{1e3 * fp32:.2f} ms in fp32"
    )
    return (torch.bfloat16 if faster else torch.float32), told


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16 products, which torch would otherwise emulate."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older versions of torch cannot say what the processor has; there `auto` stays with fp32.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in BF16_CAPABILITIES)
