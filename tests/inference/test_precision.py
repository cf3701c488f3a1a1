import re
from pathlib import Path

import pytest
import torch

from medseg_brn.errors import ConfigError
from medseg_brn.inference.precision import choose_device, choose_precision, has_native_bf16

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()


def _flags() -> set[str]:
    """Capabilities that Linux tells of the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    if found is None:
        pytest.skip("this system does not tell its processor's flags")
    return set(found[1].split())


def test_bf16_is_native_where_the_processor_says_so():
    assert has_native_bf16(CPU) == bool(_flags() & {"avx512_bf16", "amx_bf16"})


def test_auto_is_bf16_exactly_where_it_is_native():
    expected = torch.bfloat16 if has_native_bf16(CPU) else torch.float32
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("fp32", CPU) == torch.float32


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
    with pytest.raises(ConfigError, match=r"'fp8'.*auto, fp32 or bf16"):
        choose_precision("fp8", CPU)
