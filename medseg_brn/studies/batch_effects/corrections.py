"""Corrections of expression data: fitted to training samples, applied to others, without their group."""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np

from medseg_brn.errors import ConfigError
from medseg_brn.studies.batch_effects.measures import can_be_told_apart
from medseg_brn.studies.batch_effects.simulation import Samples

Corrected = tuple[Samples, Samples, Samples]
Correction = Callable[[Samples, Samples, Samples], Corrected | None]


def require_combat() -> Callable[..., np.ndarray]:
    """Return `scanpy.pp.combat`.

    Raises:
        ConfigError: scanpy is not installed.
    """
    try:
        from scanpy.preprocessing import combat
    except ImportError:
        raise ConfigError(
            "The study of batch effects compares with ComBat, for which it needs scanpy; install it with "
            'pip install "medseg-brn[studies]"'
        ) from None
    return combat


def leave(training: Samples, held_out: Samples, unseen: Samples) -> Corrected:
    """Return the samples as they are."""
    return training, held_out, unseen


def standardize_per_batch(training: Samples, held_out: Samples, unseen: Samples) -> Corrected:
    """Return each gene less the mean and by the standard deviation that its batch has in training.

    An unseen batch is standardized by its own samples, which is possible where a whole batch is there.
    """

    def standardize(samples: Samples, reference: Samples) -> Samples:
        values = np.empty_like(samples.values)
        for batch in np.unique(samples.batches):
            own = reference.values[reference.batches == batch]
            spread = own.std(axis=0, ddof=1) if len(own) > 1 else np.zeros(own.shape[1])
            where = samples.batches == batch
            # A gene without spread in a batch is left without any.
            values[where] = (samples.values[where] - own.mean(axis=0)) / np.where(spread > 0, spread, 1)
        return replace(samples, values=values)

    return standardize(training, training), standardize(held_out, training), standardize(unseen, unseen)


def apply_combat(training: Samples, held_out: Samples, unseen: Samples) -> Corrected:
    """ComBat that knows the batches only; see `_combat`."""
    return _combat(training, held_out, unseen, protect=False)


def apply_combat_with_group(training: Samples, held_out: Samples, unseen: Samples) -> Corrected | None:
    """ComBat with the group as covariate, whose differences it means to protect; see `_combat`.

    None where group and batch cannot be told apart: then the covariate's effect is not determined.
    """
    if not can_be_told_apart(training.groups, training.batches):
        return None
    return _combat(training, held_out, unseen, protect=True)


def _combat(training: Samples, held_out: Samples, unseen: Samples, *, protect: bool) -> Corrected:
    """Return the samples corrected by ComBat (Johnson 2007) as fitted to training.

    With the group as covariate, training samples are corrected with their group and others with the average
    of the training samples' groups, since theirs is what shall be found out. An unseen batch is fitted, its
    groups unknown, to the corrected training samples as the reference batch, which stay as they are.
    """
    levels = np.unique(training.groups)[1:] if protect else np.empty(0, int)
    covariates = (training.groups[:, None] == levels).astype(float)
    corrected = _fit_combat(training.values, training.batches, covariates)
    values = _repeat_combat(training, corrected, covariates, held_out)
    return (
        replace(training, values=corrected),
        replace(held_out, values=values),
        replace(unseen, values=_fit_to_reference(corrected, unseen)),
    )


def _fit_combat(values: np.ndarray, batches: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """(n, genes) corrected by the library; (n, covariates) are protected."""
    import anndata
    import pandas as pd

    combat = require_combat()
    names = [f"covariate {index}" for index in range(covariates.shape[1])]
    obs = pd.DataFrame(covariates, index=[f"sample {index}" for index in range(len(values))], columns=names)
    obs["batch"] = pd.Categorical(batches.astype(str))
    data = anndata.AnnData(values.copy(), obs)
    # It prints how many genes do not vary, and makes NaN of them: they stay as they are.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        corrected = combat(data, "batch", covariates=names or None, inplace=False)
    return np.where(np.isfinite(corrected), corrected, values)


def _repeat_combat(
    training: Samples, corrected: np.ndarray, covariates: np.ndarray, held_out: Samples
) -> np.ndarray:
    """(m, genes): held-out samples corrected as the training samples of their batches were.

    With β the covariates' effects by least squares and x a sample's covariates, ComBat is in each batch and
    gene an affine map, y* - βx = (y - βx)·slope + shift, which is read off the training samples.
    """
    indicators = (training.batches[:, None] == np.unique(training.batches)).astype(float)
    design = np.concatenate([indicators, covariates], axis=1)
    effects = np.linalg.lstsq(design, training.values, rcond=None)[0][indicators.shape[1] :]
    protected, average = covariates @ effects, covariates.mean(axis=0) @ effects
    values = np.empty_like(held_out.values)
    for batch in np.unique(held_out.batches):
        own, new = training.batches == batch, held_out.batches == batch
        slope, shift = _read_map((training.values - protected)[own], (corrected - protected)[own])
        values[new] = average + (held_out.values[new] - average) * slope + shift
    return values


def _fit_to_reference(reference: np.ndarray, unseen: Samples) -> np.ndarray:
    """(m, genes): the unseen samples corrected to the (n, genes) of the reference, which stays as it is."""
    if not len(unseen.values):
        return unseen.values
    joint = np.concatenate([reference, unseen.values])
    labels = np.concatenate([np.full(len(reference), -1), unseen.batches])
    corrected = _fit_combat(joint, labels, np.empty((len(joint), 0)))
    slope, shift = _read_map(reference, corrected[: len(reference)])
    return (corrected[len(reference) :] - shift) / slope


def _read_map(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each gene's slope and shift, (genes,) each, of the affine map from (n, genes) to (n, genes)."""
    centred = before - before.mean(axis=0)
    square = (centred**2).sum(axis=0)
    slope = np.where(square > 0, (centred * after).sum(axis=0) / np.where(square > 0, square, 1), 1)
    return slope, after.mean(axis=0) - slope * before.mean(axis=0)
