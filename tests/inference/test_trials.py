"""Trials: what they compute, and that nothing else in the process notices them."""

import math

import pytest
import torch

from medseg_brn.inference.precision import has_native_bf16
from medseg_brn.inference.trials import LAYOUTS, Way, time_formats, time_ways

CPU = torch.device("cpu")
TILE = (3, 4, 5)
FP32 = [Way(torch.float32, layout) for layout in LAYOUTS]


def test_every_layout_gets_a_time():
    seconds = time_ways(CPU, FP32, TILE)
    assert list(seconds) == FP32
    assert all(0 < taken < math.inf for taken in seconds.values())


def test_the_first_round_is_always_run():
    assert all(taken < math.inf for taken in time_ways(CPU, FP32, TILE, enough_seconds=0).values())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_what_one_dnn_refuses_takes_forever_and_the_others_are_still_tried():
    """torch's own convolution computes float64: so the layers tried are the lowered ones."""
    refused, computed = Way(torch.float64, "channels_last"), FP32[0]
    seconds = time_ways(CPU, [refused, computed], TILE)
    assert seconds[refused] == math.inf
    assert seconds[computed] < math.inf


def test_random_numbers_and_threads_stay_as_they_were():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        time_ways(CPU, FP32, TILE)
        assert torch.equal(torch.rand(3), expected)
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not has_native_bf16(CPU), reason="bf16 is tried only where it is native")
def test_formats_are_tried_once_a_process():
    seconds = time_formats(CPU)
    assert set(seconds) == {torch.float32, torch.bfloat16}
    assert time_formats(CPU) is seconds


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_tried_too():
    seconds = time_ways(torch.device("cuda"), FP32, TILE)
    assert all(0 < taken < math.inf for taken in seconds.values())
