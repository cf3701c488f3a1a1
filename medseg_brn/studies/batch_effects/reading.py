"""A user's own expression data, from CSV or AnnData, checked."""

import csv
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_brn.errors import ConfigError, DataError
from medseg_brn.studies.batch_effects.simulation import Samples

MOST_GENES = 1000
FEWEST = 6
"""Samples that a group or a batch must have."""
NAME_COLUMNS = ("", "sample", "sample_id", "id")


@dataclass(frozen=True)
class Expression:
    """Samples with the names of what they hold."""

    samples: Samples
    genes: tuple[str, ...]
    group_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    left_out: int = 0
    """Genes of smaller variance than those kept."""


def read_expression(path: Path, group: str = "group", batch: str = "batch") -> Expression:
    """Read expression data with a group and a batch for each sample.

    A CSV file has a row for each sample under a row of column names: the group's, the batch's, and one for
    each gene; a first column named "sample", "sample_id", "id" or nothing names the samples and is left out.
    An .h5ad file holds the genes in X and the two columns in obs. Values are taken as they are and should be
    on a logarithmic scale. Of more than `MOST_GENES` genes, those of the largest variance are kept.

    Args:
        path: .csv or .h5ad.
        group: column of what shall be told apart; 2 levels or more.
        batch: column of what is in its way; 2 levels or more.

    Raises:
        DataError: the file or its content is not what it must be; the message says what is wrong and where.
        ConfigError: the two columns are the same, or anndata is not installed.
    """
    if group == batch:
        raise ConfigError(f"--group and --batch both name the column {group!r}; they must be two columns")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a .csv or .h5ad file as --data")
    if path.suffix.lower() == ".h5ad":
        values, genes, groups, batches = _read_anndata(path, group, batch)
    elif path.suffix.lower() == ".csv":
        values, genes, groups, batches = _read_csv(path, group, batch)
    else:
        raise DataError(f"{path} is neither .csv nor .h5ad; save the data as one of them")
    _check_levels(path, group, groups)
    _check_levels(path, batch, batches)
    _check_values(path, values, genes)
    return _name(values, genes, groups, batches)


def _name(
    values: np.ndarray, genes: Sequence[str], groups: Sequence[str], batches: Sequence[str]
) -> Expression:
    kept = np.sort(np.argsort(-values.var(axis=0), kind="stable")[:MOST_GENES])
    group_names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    batch_names, batch_index = np.unique(np.asarray(batches), return_inverse=True)
    return Expression(
        Samples(values[:, kept], group_index, batch_index),
        tuple(genes[index] for index in kept),
        tuple(map(str, group_names)),
        tuple(map(str, batch_names)),
        left_out=len(genes) - len(kept),
    )


def _read_csv(path: Path, group: str, batch: str) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as comma-separated text in UTF-8 ({error})") from None
    repeated = (
        sorted({name for name in header if header.count(name) > 1}) if len(set(header)) < len(header) else []
    )
    if repeated:
        raise DataError(f"{path} has more than one column {repeated[0]!r}; give each column its own name")
    columns = [_find(path, name, option, header) for name, option in ((group, "--group"), (batch, "--batch"))]
    genes = [
        index
        for index, name in enumerate(header)
        if index not in columns and not (index == 0 and name.lower() in NAME_COLUMNS)
    ]
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {line}, has {len(row)} cells where the first row has {len(header)}")
    values = np.array(
        [[_number(row[i], path, line, header[i]) for i in genes] for line, row in enumerate(rows, 2)]
    )
    groups, batches = ([row[column].strip() for row in rows] for column in columns)
    return values.reshape(len(rows), len(genes)), [header[index] for index in genes], groups, batches


def _find(path: Path, name: str, option: str, columns: Sequence[str]) -> int:
    if name in columns:
        return list(columns).index(name)
    near = difflib.get_close_matches(name, columns, 1, 0.6)
    shown = ", ".join(map(repr, columns[:8])) + (", …" if len(columns) > 8 else "")
    meant = f"; did you mean {option} {near[0]}?" if near else f"; name one of them with {option}"
    raise DataError(f"{path} has no column {name!r} among {shown}{meant}")


def _number(cell: str, path: Path, line: int, gene: str) -> float:
    """The cell's number; NaN and infinity are refused, since no method here knows what to make of them."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{path}, row {line}, column {gene!r}: {cell!r} is not a finite number; fill it, or leave the "
            "sample, the gene or the column out"
        )
    return value


def _read_anndata(path: Path, group: str, batch: str) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    try:
        import anndata
    except ImportError:
        raise ConfigError(
            f"{path} is AnnData, for which anndata is needed; install it with pip install "
            '"medseg-brn[studies]", '
            "or save the data as .csv"
        ) from None
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise whatever a damaged file brings about
        raise DataError(f"{path} cannot be read as AnnData ({error})") from None
    if data.X is None:
        raise DataError(f"{path} has no X; put the log expression of the genes there")
    columns = list(map(str, data.obs.columns))
    for name, option in ((group, "--group"), (batch, "--batch")):
        _find(path, name, option, columns)
        missing = np.flatnonzero(data.obs[name].isna())
        if missing.size:
            raise DataError(
                f"{path}, sample {data.obs_names[missing[0]]!r} has no {name!r}; fill it or leave it out"
            )
    values = np.asarray(data.X.toarray() if hasattr(data.X, "toarray") else data.X, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        sample, gene = data.obs_names[bad[0, 0]], data.var_names[bad[0, 1]]
        raise DataError(
            f"{path}, sample {sample!r}, gene {gene!r}: {values[tuple(bad[0])]} is not a finite number; fill "
            "it, or leave the sample or the gene out"
        )
    groups, batches = (list(map(str, data.obs[name])) for name in (group, batch))
    return values, list(map(str, data.var_names)), groups, batches


def _check_levels(path: Path, column: str, levels: Sequence[str]) -> None:
    if "" in levels:
        raise DataError(
            f"{path}: {levels.count('')} samples have an empty {column!r}; fill it or leave them out"
        )
    counts = {level: levels.count(level) for level in sorted(set(levels))}
    if len(counts) < 2:
        only = next(iter(counts), "none")
        raise DataError(f"{path}: the column {column!r} has one level ({only!r}); two or more are needed")
    few = {level: count for level, count in counts.items() if count < FEWEST}
    if few:
        level, count = next(iter(few.items()))
        raise DataError(
            f"{path}: {column} {level!r} has {count} samples, and at least {FEWEST} are needed to train on "
            "some and hold out others; leave it out or join it with another"
        )


def _check_values(path: Path, values: np.ndarray, genes: Sequence[str]) -> None:
    if len(genes) < 2:
        raise DataError(f"{path} has {len(genes)} gene columns; at least 2 are needed")
    constant = [gene for gene, extent in zip(genes, np.ptp(values, axis=0), strict=True) if extent == 0]
    if constant:
        more = f" and {len(constant) - 1} other genes" if len(constant) > 1 else ""
        raise DataError(
            f"{path}: gene {constant[0]!r}{more} has the same value in every sample; leave it out"
        )
