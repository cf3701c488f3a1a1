"""Where a network computes, and in which number format."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from medseg_brn.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16"]

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
    """Return the number format that convolutions compute in; `auto` is bf16 where the device has it natively.

    A processor without bf16 instructions would emulate them, several times slower than fp32.

    Raises:
        ConfigError: bf16 is asked for where it would be emulated, or the name is unknown.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"Precision {name!r} is unknown; choose auto, fp32 or bf16")
    native = has_native_bf16(device)
    if name == "bf16" and not native:
        raise ConfigError(
            f"Precision bf16 was asked for, but this {device.type} device would emulate it, slowly; "
            "choose auto or fp32"
        )
    return torch.bfloat16 if native and name != "fp32" else torch.float32


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16 products, which torch would otherwise emulate."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older versions of torch cannot say what the processor has; there `auto` stays with fp32.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in BF16_CAPABILITIES)
