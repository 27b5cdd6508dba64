"""Tables: features in file order, labels apart, every doubt an error."""

import gzip
import sys

import pytest
import torch

from holdfast.errors import DataError, PrerequisiteError
from holdfast.modalities import load

pd = pytest.importorskip("pandas", reason="the extra 'data' is not installed")

FRAME = pd.DataFrame(
    {
        "age": [30, 41, 55],
        "churn": ["no", "yes", "no"],
        "paid": [1.5, 2.25, -3.0],
        "new": [True, False, True],
    }
)
FEATURES = torch.tensor([[30, 1.5, 1], [41, 2.25, 0], [55, -3.0, 1]])


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "separator"),
    [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.csv.gz", ","), ("t.parquet", None)],
)
def test_features_and_labels(tmp_path, name, separator):
    path = tmp_path / name
    if separator is None:
        pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
        FRAME.to_parquet(path)
    else:
        write(path, FRAME.to_csv(index=False, sep=separator))
    data = load(str(path), label="churn")
    x, y = data.fetch([0, 1, 2])
    assert torch.equal(x, FEATURES)
    assert y.tolist() == [0, 1, 0]
    assert data.class_names == ("no", "yes")
    assert "numbered in this order" in data.description


def test_integer_labels_stay_and_index_columns_go(tmp_path):
    frame = FRAME.drop(columns="churn").assign(y=[2, 0, 1])
    data = load(write(tmp_path / "t.csv", frame.to_csv()), label="y")
    x, y = data.fetch([0, 1, 2])
    assert torch.equal(x, FEATURES)
    assert y.tolist() == [2, 0, 1]
    assert "column Unnamed: 0 without a name left out" in data.description


def test_columns_that_are_counted(tmp_path):
    data = load(write(tmp_path / "t.csv", "0,1,2\n1.5,2.5,0\n3.5,4.5,1\n"), label="2")
    assert data.fetch([0, 1])[0].tolist() == [[1.5, 2.5], [3.5, 4.5]]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("a,y\n1,0\n", None, "no label column was named.*--label.*Columns: a, y"),
        ("a,y\n1,0\n", "z", "there is no column 'z'"),
        ("a,y\n1,0\n,1\n", "y", "1 values are missing in the column 'a', first in row 1"),
        ("a,y\n1,0\n2,\n", "y", "label 'y' is missing in 1 rows, first in row 1"),
        ("a,y\nred,0\n", "y", "column 'a' holds 'red', which is not a number"),
        ("1.5,2.5,0\n3.5,4.5,1\n", "0", "no line of column names"),
        ("y\n1\n", "y", "no column beside the label"),
        ("a,y\n", "y", "has no rows"),
        ("a,y\n1,0.5\n", "y", "label of sample 0"),
        ("", "y", "Cannot read the table"),
    ],
)
def test_bad_tables_are_told(tmp_path, text, label, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(write(tmp_path / "t.csv", text), label=label)


def test_torn_files_are_told(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"torn")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00binary")
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(DataError, match="Cannot read the table"):
            load(str(tmp_path / name), label="y")


def test_without_pandas_the_install_line_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", "a,y\n1,0\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PrerequisiteError, match=r'pip install "holdfast\[data\]"'):
        load(path, label="y")
