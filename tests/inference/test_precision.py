import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_brn.errors import ConfigError
from medseg_brn.inference.precision import (
    choose_device,
    choose_precision,
    has_native_bf16,
    weigh_precision,
)
from medseg_brn.inference.trials import time_formats

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()
FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _flags() -> set[str]:
    """Capabilities that Linux tells of the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    if found is None:
        pytest.skip("this system does not tell its processor's flags")
    return set(found[1].split())


def test_bf16_is_native_where_the_processor_says_so():
    assert has_native_bf16(CPU) == bool(_flags() & {"avx512_bf16", "amx_bf16"})


def test_auto_is_bf16_only_where_it_is_native_and_measured_faster():
    faster = False
    if has_native_bf16(CPU):
        seconds = time_formats(CPU)
        faster = seconds[torch.bfloat16] < seconds[torch.float32]
    assert choose_precision("auto", CPU) == (torch.bfloat16 if faster else torch.float32)


@pytest.mark.skipif(not has_native_bf16(CPU), reason="only what is native is tried")
@pytest.mark.parametrize(
    ("instructions", "reason"),
    [("AVX512_CORE", r"took [\d.]+ ms in bf16 and [\d.]+ ms in fp32"), ("AVX2", "(took|torch refuses)")],
)
def test_native_bf16_that_is_slow_or_refused_is_not_taken(instructions, reason):
    """oneDNN, kept from using the processor's bf16 instructions, emulates them or has no kernel at all."""
    code = (
        "import torch\n"
        "from medseg_brn.inference.precision import has_native_bf16, weigh_precision\n"
        "print(has_native_bf16(torch.device('cpu')), *weigh_precision(torch.device('cpu')))\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.match(rf"True torch\.float32 the processor has bf16 instructions, .*{reason}", told)


def test_the_reason_tells_what_was_measured():
    _, reason = weigh_precision(CPU)
    if not has_native_bf16(CPU):
        assert "no bf16 instructions" in reason
        return
    seconds = time_formats(CPU)
    told = [f"{1e3 * seconds[dtype]:.2f} ms in {name}" for dtype, name in FORMATS.items()]
    assert all(part in reason for part in told)


def test_what_is_asked_for_by_name_is_not_tried():
    time_formats.cache_clear()
    assert choose_precision("fp32", CPU) == torch.float32
    if has_native_bf16(CPU):
        assert choose_precision("bf16", CPU) == torch.bfloat16
    assert time_formats.cache_info().misses == 0


@pytest.mark.skipif(not HAS_CUDA, reason="there is no GPU")
def test_a_gpu_is_not_tried():
    time_formats.cache_clear()
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_precision("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)
    assert time_formats.cache_info().misses == 0


@pytest.mark.skipif(has_native_bf16(CPU), reason="this processor has bf16")
def test_bf16_is_never_emulated():
    with pytest.raises(ConfigError, match=r"bf16 .* cpu .* auto or fp32"):
        choose_precision("bf16", CPU)


def test_auto_device_is_cuda_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if HAS_CUDA else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        choose_device("cuda")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"'tpu'.*auto, cpu or cuda"):
        choose_device("tpu")
    with pytest.raises(ConfigError, match=r"'fp8'.*auto, fp32, bf16 or int8"):
        choose_precision("fp8", CPU)
