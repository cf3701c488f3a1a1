"""Corrections against naive computations, and what they may not know."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from medseg_brn.errors import ConfigError
from medseg_brn.studies.batch_effects import corrections
from medseg_brn.studies.batch_effects.measures import compute_eta_squared
from medseg_brn.studies.batch_effects.simulation import Setting, simulate_dataset

SETTING = Setting(genes=30, differing=6, samples=16)


def make_parts(association=0.5):
    data = simulate_dataset(association, True, (0,), SETTING)
    return data.training, data.held_out, data.unseen


def combat_naively(training, covariate=None):
    """Johnson, Li and Rabinovic 2007, sections 3.1 and 3.2, gene by gene: (n, genes) corrected.

    As in the library, τ² is divided by the number of genes, where the paper divides by one less.
    """
    y, n = training.values, len(training.values)
    batches = np.unique(training.batches)
    design = np.stack([training.batches == b for b in batches], axis=1).astype(float)
    counts = design.sum(axis=0)
    extra = np.zeros((n, 0)) if covariate is None else covariate[:, None]
    full = np.concatenate([design, extra], axis=1)
    beta = np.linalg.solve(full.T @ full, full.T @ y)
    mean = (counts / n) @ beta[: len(batches)] + extra @ beta[len(batches) :]
    sigma = np.sqrt(((y - full @ beta) ** 2).mean(axis=0))
    z = (y - mean) / sigma
    corrected = np.empty_like(y)
    for b in batches:
        zb = z[training.batches == b]
        m = len(zb)
        gamma_hat, delta_hat = zb.mean(axis=0), zb.var(axis=0, ddof=1)
        gamma_bar, tau = gamma_hat.mean(), gamma_hat.var()
        v, s = delta_hat.mean(), delta_hat.var(ddof=1)
        shape, rate = (v**2 + 2 * s) / s, (v**3 + v * s) / s
        for gene in range(y.shape[1]):
            gamma, delta = gamma_hat[gene], delta_hat[gene]
            for _ in range(200):
                gamma = (m * tau * gamma_hat[gene] + delta * gamma_bar) / (m * tau + delta)
                delta = (rate + ((zb[:, gene] - gamma) ** 2).sum() / 2) / (m / 2 + shape - 1)
            own = np.flatnonzero(training.batches == b)
            corrected[own, gene] = sigma[gene] * (zb[:, gene] - gamma) / np.sqrt(delta) + mean[own, gene]
    return corrected


def test_each_batch_is_standardized_by_its_training_samples():
    training, held_out, unseen = make_parts()
    made = corrections.standardize_per_batch(training, held_out, unseen)
    for part, values in ((held_out, made[1].values), (training, made[0].values)):
        for sample in (0, 20, 40):
            own = training.values[training.batches == part.batches[sample]]
            expected = (part.values[sample] - own.mean(axis=0)) / own.std(axis=0, ddof=1)
            np.testing.assert_allclose(values[sample], expected)
    np.testing.assert_allclose(made[2].values.mean(axis=0), 0, atol=1e-12)


def test_combat_is_that_of_the_paper():
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts()
    made = corrections.apply_combat(training, held_out, unseen)[0]
    np.testing.assert_allclose(made.values, combat_naively(training), rtol=1e-3, atol=2e-3)


def test_combat_with_the_group_is_that_of_the_paper():
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts()
    made = corrections.apply_combat_with_group(training, held_out, unseen)[0]
    expected = combat_naively(training, training.groups.astype(float))
    np.testing.assert_allclose(made.values, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("correct", [corrections.apply_combat, corrections.apply_combat_with_group])
def test_the_groups_of_held_out_and_unseen_samples_are_not_used(correct):
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts()
    turned = [replace(part, groups=1 - part.groups) for part in (held_out, unseen)]
    for one, other in zip(correct(training, held_out, unseen), correct(training, *turned), strict=True):
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("correct", [corrections.apply_combat, corrections.apply_combat_with_group])
def test_combat_does_not_look_at_what_it_is_applied_to(correct):
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts()
    louder = replace(held_out, values=held_out.values + np.arange(len(held_out.groups))[:, None] % 2 * 5)
    quiet, loud = (correct(training, part, unseen) for part in (held_out, louder))
    np.testing.assert_array_equal(quiet[0].values, loud[0].values)
    np.testing.assert_allclose(quiet[1].values[::2], loud[1].values[::2])


def test_held_out_samples_are_corrected_as_the_training_samples_of_their_batch():
    pytest.importorskip("scanpy")
    training, _, unseen = make_parts()
    made = corrections.apply_combat(training, training, unseen)
    np.testing.assert_allclose(made[1].values, made[0].values, rtol=1e-9)


def test_a_held_out_sample_counts_as_one_of_average_group():
    pytest.importorskip("scanpy")
    training, _, unseen = make_parts()
    made = corrections.apply_combat_with_group(training, training, unseen)
    # y* = (y - βx)·slope + βx + shift; of the same sample with its x (0 or 1) and with the average (0.5) the
    # difference is (1 - slope)·β·(x - 0.5): the same for all of a group, and opposite for the other.
    difference, own = made[0].values - made[1].values, training.batches == 0
    first, second = (difference[own & (training.groups == group)] for group in (0, 1))
    np.testing.assert_allclose(first, first[:1].repeat(len(first), axis=0), atol=1e-8)
    np.testing.assert_allclose(first[0], -second[0], atol=1e-8)
    assert np.abs(first).max() > 1e-3


def test_an_unseen_batch_comes_to_the_corrected_training_samples_level():
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts(0.0)
    before = unseen.values.mean(axis=0) - training.values.mean(axis=0)
    made = corrections.apply_combat(training, held_out, unseen)
    after = made[2].values.mean(axis=0) - made[0].values.mean(axis=0)
    assert np.abs(after).mean() < 0.2 * np.abs(before).mean()


def test_combat_takes_the_batches_out():
    pytest.importorskip("scanpy")
    training, held_out, unseen = make_parts(0.0)
    made = corrections.apply_combat(training, held_out, unseen)[0]
    before, after = (
        compute_eta_squared(values, training.batches).mean() for values in (training.values, made.values)
    )
    assert before > 0.3 and after < 0.01


def test_the_group_as_covariate_is_impossible_where_it_is_the_batch():
    assert corrections.apply_combat_with_group(*make_parts(1.0)) is None


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy.preprocessing", None)
    with pytest.raises(ConfigError, match=r'scanpy.*pip install "medseg-brn\[studies\]"'):
        corrections.require_combat()
