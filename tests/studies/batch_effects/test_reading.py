"""A user's own data: what is read, and what each refusal says."""

import sys

import numpy as np
import pytest

from medseg_brn.errors import ConfigError, DataError
from medseg_brn.studies.batch_effects import reading
from medseg_brn.studies.batch_effects.reading import read_expression

GROUPS = ["case", "control"] * 8
BATCHES = ["north"] * 8 + ["south"] * 8


def make_rows():
    """Header and 16 samples, as lists of text."""
    values = np.arange(16)[:, None] * [1.0, -2.0] % 7
    rows = [[f"s{i}", GROUPS[i], *map(str, values[i]), BATCHES[i]] for i in range(16)]
    return [["sample", "group", "TP53", "MYC", "batch"], *rows]


def write(path, rows):
    path.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_csv_file_is_read(tmp_path):
    data = read_expression(write(tmp_path / "data.csv", make_rows()))
    assert data.genes == ("TP53", "MYC")
    assert (data.group_names, data.batch_names) == (("case", "control"), ("north", "south"))
    assert data.samples.groups.tolist() == [0, 1] * 8 and data.samples.batches.tolist() == [0] * 8 + [1] * 8
    np.testing.assert_array_equal(data.samples.values, np.arange(16)[:, None] * [1.0, -2.0] % 7)


def test_other_columns_may_be_named(tmp_path):
    rows = make_rows()
    rows[0][1], rows[0][4] = "disease", "site"
    data = read_expression(write(tmp_path / "data.csv", rows), "disease", "site")
    assert data.genes == ("TP53", "MYC")


def test_the_genes_of_largest_variance_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_GENES", 1)
    data = read_expression(write(tmp_path / "data.csv", make_rows()))
    variances = {"TP53": np.var(np.arange(16) % 7), "MYC": np.var(np.arange(16) * -2 % 7)}
    assert data.genes == (max(variances, key=variances.get),) and data.left_out == 1


def test_anndata_is_read_dense_and_sparse(tmp_path):
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    values = np.arange(16)[:, None] * [1.0, -2.0] % 7
    obs = pandas.DataFrame({"group": GROUPS, "batch": BATCHES}, index=[f"s{i}" for i in range(16)])
    var = pandas.DataFrame(index=["TP53", "MYC"])
    for name, matrix in (("dense", values), ("sparse", sparse.csr_matrix(values))):
        anndata.AnnData(matrix, obs, var).write_h5ad(tmp_path / f"{name}.h5ad")
        data = read_expression(tmp_path / f"{name}.h5ad")
        assert data.genes == ("TP53", "MYC") and data.group_names == ("case", "control")
        np.testing.assert_array_equal(data.samples.values, values)
    with pytest.raises(DataError, match="no column 'site'"):
        read_expression(tmp_path / "dense.h5ad", batch="site")


def test_a_missing_anndata_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    (tmp_path / "data.h5ad").touch()
    with pytest.raises(ConfigError, match=r'pip install "medseg-brn\[studies\]"'):
        read_expression(tmp_path / "data.h5ad")


def test_a_damaged_h5ad_is_refused(tmp_path):
    pytest.importorskip("anndata")
    (tmp_path / "data.h5ad").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as AnnData"):
        read_expression(tmp_path / "data.h5ad")


def change(row, column, value):
    def apply(rows):
        rows[row][column] = value

    return apply


def fill(column, value):
    def apply(rows):
        for row in rows[1:]:
            row[column] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(0, 1, "groups"), r"no column 'group' among .*did you mean --group groups\?"),
        (change(0, 4, "laboratory"), r"no column 'batch' among .*name one of them with --batch"),
        (change(3, 2, ""), r"row 4, column 'TP53': '' is not a finite number"),
        (change(3, 2, "NaN"), r"row 4, column 'TP53': 'NaN' is not a finite number"),
        (change(5, 3, "high"), r"row 6, column 'MYC': 'high' is not a finite number"),
        (fill(2, "3.5"), r"gene 'TP53' has the same value in every sample; leave it out"),
        (fill(4, "north"), r"column 'batch' has one level \('north'\)"),
        (fill(1, "case"), r"column 'group' has one level \('case'\)"),
        (change(2, 1, ""), r"1 samples have an empty 'group'"),
        (change(2, 4, "west"), r"batch 'west' has 1 samples, and at least 6"),
        (change(0, 3, "TP53"), r"more than one column 'TP53'"),
        (lambda rows: rows[7].append("1"), r"row 8, has 6 cells where the first row has 5"),
        (lambda rows: rows.__delitem__(slice(1, None)), r"column 'group' has one level \('none'\)"),
        (lambda rows: [row.pop(3) for row in rows], r"1 gene columns; at least 2"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, spoil, message):
    rows = make_rows()
    spoil(rows)
    with pytest.raises(DataError, match=message):
        read_expression(write(tmp_path / "data.csv", rows))


def test_files_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        read_expression(tmp_path / "none.csv")
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(DataError, match=r"neither \.csv nor \.h5ad"):
        read_expression(tmp_path / "data.xlsx")
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_expression(tmp_path / "data.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="no column 'group'"):
        read_expression(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match="both name the column 'site'"):
        read_expression(tmp_path / "data.csv", "site", "site")
