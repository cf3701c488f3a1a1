"""The linear model: x = a·z + b + ε, answers by hand and by drawing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.sites.laboratories import (
    FEATURES,
    NOISE,
    Items,
    Laboratories,
    compute_best_accuracy,
    draw_laboratories,
    measure_harmonization,
)


def make_laboratories(*gains_and_offsets: tuple[float, float]) -> Laboratories:
    """Laboratories with one gain and one offset in all features; the class is the first feature's sign."""
    gain, offset = (torch.tensor(part).repeat(FEATURES, 1).T for part in zip(*gains_and_offsets, strict=True))
    return Laboratories(gain, offset, torch.eye(FEATURES)[0])


def test_a_laboratory_scales_shifts_and_adds_noise():
    """The same draws in three laboratories: noise alone, z + ε, and 2·z + 3 + ε."""
    laboratories = make_laboratories((0.0, 0.0), (1.0, 0.0), (2.0, 3.0))
    silent, plain, other = (
        laboratories.draw(torch.full((50,), number), torch.Generator().manual_seed(5)) for number in range(3)
    )
    z = plain.features - silent.features
    torch.testing.assert_close(other.features, 2 * z + 3 + silent.features)
    assert torch.equal(other.classes, (z[:, 0] > 0).float())
    assert silent.features.std() == pytest.approx(NOISE, abs=0.05)


def test_items_of_each_laboratory_stand_together():
    items = make_laboratories((1.0, 0.0), (1.0, 5.0)).draw_each(3, torch.Generator().manual_seed(0))
    assert items.laboratories.tolist() == [0, 0, 0, 1, 1, 1]
    assert items.features[3:].mean() - items.features[:3].mean() == pytest.approx(5, abs=1)


@given(gain=st.floats(0.1, 10), offset=st.floats(-10, 10))
def test_harmonized_items_know_nothing_of_gain_and_offset(gain, offset):
    values = torch.randn(40, FEATURES, generator=torch.Generator().manual_seed(1))
    stored = torch.cat([values, gain * values + offset])
    items = Items(stored, torch.zeros(80), torch.arange(2).repeat_interleave(40))
    scores = measure_harmonization(items, 2).apply(items).features
    torch.testing.assert_close(scores[:40], scores[40:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores.mean(0), torch.zeros(FEATURES), rtol=0, atol=1e-3)
    torch.testing.assert_close(scores[40:].std(0), torch.ones(FEATURES), rtol=0, atol=1e-3)


def test_the_best_accuracy_by_hand():
    """A gain as large as the noise makes the correlation √½, whose angle is a quarter of π: 1 - 1/4."""
    best = compute_best_accuracy(make_laboratories((NOISE, 0.0), (1e6, 7.0), (0.0, 0.0)))
    assert best.tolist() == pytest.approx([0.75, 1.0, 0.5], abs=1e-6)


def test_the_best_rule_reaches_the_best_accuracy():
    laboratories = draw_laboratories(3, torch.Generator().manual_seed(2))
    items = laboratories.draw_each(20_000, torch.Generator().manual_seed(3))
    gain, offset = (part[items.laboratories] for part in (laboratories.gain, laboratories.offset))
    expected_z = (items.features - offset) * gain / (gain**2 + NOISE**2)
    right = ((expected_z @ laboratories.normal > 0).float() == items.classes).double()
    torch.testing.assert_close(
        right.reshape(3, -1).mean(1), compute_best_accuracy(laboratories), rtol=0, atol=0.01
    )
