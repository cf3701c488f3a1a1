"""Plans: within the budget, as fast as it allows, and a clear word where nothing fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.errors import ConfigError
from medseg_brn.inference.plan import make_plan
from medseg_brn.networks.levels import list_levels
from medseg_brn.networks.unet3d import UNet3d


def _levels(channels, **options):
    with torch.device("meta"):
        return list_levels(UNet3d(1, 3, channels, norm="none", **options))


FOUR = _levels((16, 32, 64, 128))
SIX = _levels((32, 64, 128, 256, 320, 320), encoder_blocks=2, decoder_blocks=2)
RESIDUAL = _levels((16, 32, 64), encoder="residual")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([FOUR, SIX, RESIDUAL]),
    st.tuples(*[st.integers(20, 300)] * 3),
    st.sampled_from([3e8, 1e9, 4e9]),
    st.sampled_from([1, 2, 4]),
)
def test_a_plan_keeps_to_its_budget_and_its_tiles_to_the_lattice(levels, shape, budget, item_bytes):
    plan = make_plan(levels, 3, shape, item_bytes, budget)
    assert plan.predicted_bytes <= budget
    assert plan.work >= 1
    assert all(size >= given and size - given < 32 for size, given in zip(plan.shape, shape, strict=True))
    for tile, level, size in zip(plan.decoder_tiles, levels, plan.level_shapes, strict=False):
        for side, step, length in zip(tile, level.upsample_stride, size, strict=True):
            assert side % step == 0
            assert 0 < side <= length


def test_with_all_the_memory_little_is_done_twice_and_nothing_goes_to_files():
    plan = make_plan(FOUR, 3, (128, 128, 128), 4, 1e12)
    assert plan.work < 1.06
    assert plan.file_bytes == 0
    assert not plan.recompute


def test_less_memory_costs_more_work_or_files():
    plans = [make_plan(SIX, 3, (256, 256, 160), 2, budget) for budget in (8e9, 1e9, 3e8, 1e8)]
    assert [plan.predicted_bytes for plan in plans] == sorted(
        (p.predicted_bytes for p in plans), reverse=True
    )
    assert plans[0].file_bytes == 0 < plans[1].file_bytes


def test_the_number_of_classes_hardly_matters():
    few, many = (make_plan(SIX, classes, (256, 256, 160), 2, 1e9) for classes in (3, 100))
    assert many.predicted_bytes <= 1e9
    assert many.work < few.work + 0.2


def test_work_counts_what_is_computed_twice():
    """One level of one convolution: tiles of 8 planes and a halo of 1 on inner sides."""
    levels = _levels((4,), encoder_blocks=1, kernels=[(3, 1, 1)])
    plan = make_plan(levels, 2, (64, 32, 32), 4, 800_000)
    planes = plan.score_tile[0]
    assert planes < 64
    assert plan.work == pytest.approx(-(-64 // planes) * (planes + 2) / 64)


def test_a_budget_that_cannot_suffice_is_refused_with_what_would():
    with pytest.raises(
        ConfigError, match=r"512×512×600 voxels needs at least \d\.\d+ GB .*0\.01 GB .*--memory"
    ):
        make_plan(SIX, 24, (512, 512, 600), 2, 1e7)


def test_a_plan_says_what_it_does():
    plan = make_plan(SIX, 3, (256, 256, 160), 2, 6e8)
    assert "256×256×160 voxels in tiles of" in plan.describe()
    assert "on file" in plan.describe()
    whole = make_plan(FOUR, 3, (16, 16, 16), 4, 1e9)
    assert whole.describe() == "exact, 16×16×16 voxels in one piece at full resolution"
