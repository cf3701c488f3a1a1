"""What this machine is, has and does best, in plain JSON types."""

import math
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from medseg_brn.inference import machine
from medseg_brn.inference.precision import choose_device, has_native_bf16, weigh_precision
from medseg_brn.inference.trials import CHANNELS, LAYOUTS, TYPICAL_TILE, Way, time_ways

PACKAGES = ("medseg_brn", "torch", "monai", "numpy", "nibabel", "SimpleITK")

# The instructions that decide how fast convolutions are, as torch names them.
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "neon", "sve", "sve2", "bf16")

# What pyproject.toml offers besides the required packages: what for, and which packages it brings.
TEST_PACKAGES = ("hypothesis", "pytest", "selenium", "highdicom")
EXTRAS = {
    "dicom": ("label maps as DICOM-SEG", ("highdicom",)),
    "hub": ("models from the Hugging Face Hub", ("huggingface_hub",)),
    "onnx": ("models as ONNX files", ("onnx", "onnxruntime")),
    "ray": ("scans and runs spread over a cluster", ("ray",)),
    "studies": ("the study of batch effects", ("scanpy",)),
    "test": ("run the tests", TEST_PACKAGES),
    "dev": (
        "change the code",
        (*TEST_PACKAGES, "fire", "mypy", "pytorch-ignite", "ruff", "types-PyYAML"),
    ),
}

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def examine_machine() -> dict[str, Any]:
    """Return all that `medseg-brn doctor` tells, in plain JSON types; it takes a second or two.

    Sizes are in bytes. A version is None where the package is missing, a trial's time and speed are None
    where torch refuses to compute it, and bf16 is not tried where it would be emulated.
    """
    temporary = tempfile.gettempdir()
    has_cuda = torch.cuda.is_available()
    devices = [torch.device("cpu"), *([torch.device("cuda")] if has_cuda else [])]
    trials = [trial for device in devices for trial in _try(device)]
    return {
        "versions": {name: _find_version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "system": platform.platform(),
        "processor": {
            "name": machine.processor_name().removesuffix(f", {machine.core_count()} cores"),
            "cores": machine.core_count(),
            "threads": torch.get_num_threads(),
            "instructions": _list_instructions(),
        },
        "memory": {
            "total_bytes": machine.total_memory_bytes(),
            "free_bytes": machine.available_memory_bytes(),
            "infer_bytes": machine.default_budget_bytes(),
        },
        "temporary_folder": {"path": temporary, "free_bytes": shutil.disk_usage(temporary).free},
        "gpus": [_describe_gpu(index) for index in range(torch.cuda.device_count() if has_cuda else 0)],
        "trial": {"channels": CHANNELS, "tile": list(TYPICAL_TILE), "threads": 1},
        "trials": trials,
        "auto": {
            "device": choose_device("auto").type,
            "choices": [_choose(device, trials) for device in devices],
        },
        "extras": [_describe_extra(name) for name in EXTRAS],
    }


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _list_instructions() -> list[str]:
    """Those that matter; where an older torch cannot say, the one set that it has code for."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities:
        return [torch.backends.cpu.get_cpu_capability().lower()]
    return [name for name in INSTRUCTIONS if capabilities.get(name, False)]


def _describe_gpu(index: int) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(index)
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    name = torch.cuda.get_device_name(index)
    return {"name": name, "total_bytes": total, "free_bytes": free, "compute_capability": capability}


def _try(device: torch.device) -> list[dict[str, Any]]:
    """Each format in each layout, with its speed relative to the first."""
    dtypes = [dtype for dtype in FORMATS if dtype == torch.float32 or has_native_bf16(device)]
    seconds = time_ways(device, [Way(dtype, layout) for dtype in dtypes for layout in LAYOUTS])
    first = next(iter(seconds.values()))
    return [
        {
            "device": device.type,
            "precision": FORMATS[way.dtype],
            "layout": way.layout,
            "milliseconds": _round_finite(1e3 * taken),
            "relative_speed": _round_finite(first / taken),
        }
        for way, taken in seconds.items()
    ]


def _round_finite(value: float) -> float | None:
    return round(value, 3) if 0 < value < math.inf else None  # of inf / inf, too


def _choose(device: torch.device, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What `auto` takes on the device, and why; the layout is always the one that `lower` gives."""
    dtype, reason = weigh_precision(device)
    taken = {
        trial["layout"]: trial["milliseconds"]
        for trial in trials
        if (trial["device"], trial["precision"]) == (device.type, FORMATS[dtype])
    }
    measured = ""
    if all(taken.values()):  # neither was refused
        ratio = taken["contiguous"] / taken["channels_last"]
        measured = f"; in {FORMATS[dtype]} it was {ratio:.2f} times as fast as contiguous"
    return {
        "device": device.type,
        "precision": FORMATS[dtype],
        "precision_reason": reason,
        "layout": "channels_last",
        "layout_reason": f"inference always computes so{measured}",
    }


def _describe_extra(name: str) -> dict[str, Any]:
    purpose, packages = EXTRAS[name]
    missing = [package for package in packages if _find_version(package) is None]
    return {
        "name": name,
        "purpose": purpose,
        "present": not missing,
        "missing": missing,
        "install": f'pip install "medseg-brn[{name}]"',
    }
