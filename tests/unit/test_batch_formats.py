"""Files of rows in every format: the same rows come out from any row on, and what does not fit is refused by name."""

import csv
import itertools
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from muster_agent.batch.database import DatabaseSink
from muster_agent.batch.encoders import encoder
from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.batch.mapping import Chunk, Column, feeds, tensor
from muster_agent.batch.sources import Source, open_source
from muster_agent.client.schema import Side
from muster_agent.engines.port import Array
from muster_shared.bundle import TensorSpec

ROWS = 37
A = np.arange(ROWS, dtype=np.float64) / 4
B = np.arange(ROWS, dtype=np.float64) * 2
NAMES = [f"row {index}, é" for index in range(ROWS)]


def csv_file(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "a", "b"), *zip(NAMES, A, B, strict=True)])
    return path


def parquet_file(path: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"name": NAMES, "a": A, "b": B}), path, row_group_size=10)
    return path


def sqlite_file(path: Path) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (name TEXT, a REAL, b REAL)")
        database.executemany("INSERT INTO t VALUES (?, ?, ?)", zip(NAMES, A.tolist(), B.tolist(), strict=True))
    database.close()
    return path


def npz_file(path: Path) -> Path:
    np.savez(path, name=np.array(NAMES), a=A, b=B)
    return path


def packed_npz_file(path: Path) -> Path:
    np.savez_compressed(path, name=np.array(NAMES), a=A, b=B)
    return path


@pytest.fixture(
    params=[
        ("in.csv", csv_file),
        ("in.parquet", parquet_file),
        ("in.sqlite", sqlite_file),
        ("in.npz", npz_file),
        ("packed.npz", packed_npz_file),
    ],
    ids=lambda param: param[0],
)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    name, make = request.param
    return open_source(make(tmp_path / name))


@pytest.mark.parametrize(
    ("start", "stop", "rows"), [(0, ROWS, 8), (16, ROWS, 8), (8, 20, 4), (36, 37, 1), (0, ROWS, 100)]
)
def test_every_source_gives_the_same_rows_from_any_row_on(source: Source, start: int, stop: int, rows: int) -> None:
    chunks = list(source.chunks(start, stop, rows, ("b", "name", "a")))

    assert [len(chunk["a"]) for chunk in chunks] == [min(rows, stop - at) for at in range(start, stop, rows)]
    assert source.rows == ROWS
    np.testing.assert_array_equal(np.concatenate([chunk["a"] for chunk in chunks]).astype(np.float64), A[start:stop])
    np.testing.assert_array_equal(np.concatenate([chunk["b"] for chunk in chunks]).astype(np.float64), B[start:stop])
    assert [name for chunk in chunks for name in chunk["name"].tolist()] == NAMES[start:stop]


def test_an_npy_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((10, 4), np.float32))
    source = open_source(tmp_path / "in.npy")
    side = Side([TensorSpec(name="x", datatype="FP32", shape=(-1, 2, 2))])

    [feed] = feeds(side, source.columns)
    [chunk] = source.chunks(0, 10, 10, feed.columns)
    made = tensor(feed, chunk, 0)

    assert made.shape == (10, 2, 2)
    assert made.base is not None
    assert not made.flags.owndata


def test_a_file_that_changes_has_another_identity(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "in.csv")
    before = open_source(path).identity

    path.write_bytes(path.read_bytes() + b"one more,1,2\n")

    assert open_source(path).identity != before


def test_a_query_gives_its_rows(tmp_path: Path) -> None:
    source = open_source(sqlite_file(tmp_path / "in.db"), query="SELECT b, a AS c FROM t WHERE a > 1 ORDER BY a;")

    [chunk] = source.chunks(0, source.rows, 100, ("c",))

    np.testing.assert_array_equal(chunk["c"], A[A > 1])


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "empty"), (b"a,a\n1,2\n", "same name"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_a_broken_csv_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "in.csv").write_bytes(content)

    with pytest.raises(JobInvalid, match=told):
        open_source(tmp_path / "in.csv")


@pytest.mark.parametrize(("line", "told"), [("1,2,3", "has 3 cells"), ("x,2", "'a' is 'x'")])
def test_a_bad_line_of_a_csv_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "in.csv").write_text("a,b\n" + "1,2\n" * 1001 + line + "\n")
    source = open_source(tmp_path / "in.csv")

    with pytest.raises(RowsRefused, match=f"row 1001.*{told}"):
        list(source.chunks(1000, source.rows, 10, ("a", "b")))


def test_numbers_without_names_are_columns_too(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("1,2\n3,4\n")
    source = open_source(tmp_path / "in.csv")

    assert [column.name for column in source.columns] == ["c0", "c1"]
    assert source.rows == 2


# -- which columns feed what -------------------------------------------------------------------------------------------

F64 = np.dtype(np.float64)
COLUMNS = (Column("id", np.dtype(np.int64)), Column("name", np.dtype(object)), Column("a", F64), Column("b", F64))
PAIR = Side([TensorSpec(name="x", datatype="FP32", shape=(-1, 2))])
TWO = Side([TensorSpec(name="a", datatype="FP32", shape=(-1, 1)), TensorSpec(name="z", datatype="FP32", shape=(-1, 1))])


def test_all_numbers_that_are_not_kept_feed_the_only_input() -> None:
    [feed] = feeds(PAIR, COLUMNS, keep=("id",))

    assert feed.columns == ("a", "b")


def test_a_column_named_as_an_input_feeds_it() -> None:
    first, second = feeds(TWO, COLUMNS, inputs={"z": ("b",)})

    assert (first.columns, second.columns) == (("a",), ("b",))


def test_the_one_array_of_the_right_size_feeds_the_only_input() -> None:
    columns = (*COLUMNS, Column("pixels", np.dtype(np.uint8), (2,)), Column("other", F64, (3,)))

    [feed] = feeds(PAIR, columns)

    assert feed.columns == ("pixels",)


@pytest.mark.parametrize(
    ("chosen", "inputs", "keep", "told"),
    [
        ((), {}, (), "would get 3 columns"),
        (("a", "c"), {}, (), "no column 'c'"),
        (("a", "name"), {}, (), "this is none: name"),
        ((), {"y": ("a", "b")}, (), "no input 'y'"),
        ((), {}, ("zip",), "--keep"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    chosen: Sequence[str], inputs: dict[str, Sequence[str]], keep: Sequence[str], told: str
) -> None:
    with pytest.raises(JobInvalid, match=told):
        feeds(PAIR, COLUMNS, chosen=chosen, inputs=inputs, keep=keep)


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("FP32", np.array([1, 2], np.int64), [1.0, 2.0]),
        ("FP32", np.array([0.1, 2.5], np.float64), [np.float32(0.1), 2.5]),
        ("INT64", np.array([1.0, -2.0]), [1, -2]),
        ("UINT8", np.array([0, 255], np.int64), [0, 255]),
        ("FP32", np.array([np.nan, np.inf]), [np.nan, np.inf]),
    ],
)
def test_values_that_mean_the_same_are_taken(datatype: str, values: Array, expected: list[float]) -> None:
    side = Side([TensorSpec(name="x", datatype=datatype, shape=(-1, 1))])  # type: ignore[arg-type]  # One of them.
    [feed] = feeds(side, [Column("v", values.dtype)])

    np.testing.assert_array_equal(tensor(feed, {"v": values}, 0)[:, 0], np.array(expected, feed.dtype))


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT64", np.array([0.0, 1.5])),
        ("UINT8", np.array([3, 256], np.int64)),
        ("UINT8", np.array([3, -1], np.int64)),
        ("INT64", np.array([0.0, np.nan])),
        ("INT64", np.array([0.0, 2.0**63])),
        ("UINT64", np.array([0, -1], np.int64)),
    ],
)
def test_values_that_would_change_are_refused_by_their_row(datatype: str, values: Array) -> None:
    side = Side([TensorSpec(name="x", datatype=datatype, shape=(-1, 1))])  # type: ignore[arg-type]  # One of them.
    [feed] = feeds(side, [Column("v", values.dtype)])

    with pytest.raises(RowsRefused, match="row 11"):
        tensor(feed, {"v": values}, 10)


def test_text_feeds_an_input_of_bytes_and_a_missing_one_is_refused() -> None:
    side = Side([TensorSpec(name="text", datatype="BYTES", shape=(-1, 1))])
    [feed] = feeds(side, [Column("t", np.dtype(object))])

    made = tensor(feed, {"t": np.array(["é", b"b"], dtype=object)}, 0)

    assert made.ravel().tolist() == ["é".encode(), b"b"]
    with pytest.raises(RowsRefused, match="row 6: 't' has no value"):
        tensor(feed, {"t": np.array(["a", None], dtype=object)}, 5)


def test_raw_bytes_of_a_database_feed_a_tensor(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    with sqlite3.connect(tmp_path / "in.db") as database:
        database.execute("CREATE TABLE t (pixels BLOB)")
        database.executemany("INSERT INTO t VALUES (?)", [(row.tobytes(),) for row in rows])
    database.close()
    source = open_source(tmp_path / "in.db")

    [feed] = feeds(PAIR, source.columns)
    [chunk] = source.chunks(0, 4, 4, feed.columns)

    np.testing.assert_array_equal(tensor(feed, chunk, 0), rows)


# -- what is written ---------------------------------------------------------------------------------------------------

SCORES = np.array([[0.1, 0.9], [0.25, np.nan]], np.float32)
WRITTEN = (Column("id", np.dtype(np.int64)), Column("name", np.dtype(object)), Column("score", SCORES.dtype, (2,)))
CHUNK: Chunk = {"id": np.array([7, 8]), "name": np.array(["é", None], dtype=object), "score": SCORES}


def text_of(name: str) -> str:
    made = encoder(Path(name), WRITTEN, 2)
    return (made.head() + bytes(made.encode(CHUNK))).decode()


def test_csv_has_a_column_for_each_element_and_short_numbers() -> None:
    assert text_of("o.csv") == "id,name,score_0,score_1\n7,é,0.1,0.9\n8,,0.25,nan\n"


def test_jsonl_has_arrays_and_null_for_what_json_has_not() -> None:
    assert [json.loads(line) for line in text_of("o.jsonl").splitlines()] == [
        {"id": 7, "name": "é", "score": [0.1, 0.9]},
        {"id": 8, "name": None, "score": [0.25, None]},
    ]


@pytest.mark.parametrize("cuts", [(0, 150_000), (0, 1, 65_536, 65_537, 150_000), (0, 70_000, 131_072, 150_000)])
def test_parquet_is_the_same_however_the_rows_came(tmp_path: Path, cuts: Sequence[int]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = [Column("n", np.dtype(np.int64)), Column("v", np.dtype(np.float32), (3,))]
    numbers = np.arange(150_000)
    values = np.random.default_rng(3).random((150_000, 3), np.float32)

    def written(name: str, at: Sequence[int]) -> bytes:
        made = encoder(tmp_path / name, columns, 150_000)
        parts = [made.encode({"n": numbers[a:b], "v": values[a:b]}) for a, b in itertools.pairwise(at)]
        (tmp_path / "part").write_bytes(b"".join([made.head(), *map(bytes, parts)]))
        assert made.convert(tmp_path / "part", tmp_path / name)
        return (tmp_path / name).read_bytes()

    assert written("b.parquet", cuts) == written("a.parquet", (0, 50_000, 100_000, 150_000))
    table = pq.read_table(tmp_path / "b.parquet")
    assert table["n"].to_numpy().tolist() == numbers.tolist()
    np.testing.assert_array_equal(np.array(table["v"].slice(0, 100).to_pylist(), np.float32), values[:100])


def test_a_table_goes_on_where_its_last_commit_ended(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    sink = DatabaseSink(path, "scores", WRITTEN)
    sink.begin(0)
    for first_row in (0, 2, 4):
        sink.write(CHUNK, first_row)
    sink.commit()
    sink.close()

    again = DatabaseSink(path, "scores", WRITTEN)
    again.begin(2)
    again.write(CHUNK, 2)
    again.commit()
    again.close()

    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT row, id, name, score_0 FROM scores ORDER BY row").fetchall()
    database.close()
    assert [row[:3] for row in rows] == [(0, 7, "é"), (1, 8, None), (2, 7, "é"), (3, 8, None)]
    assert rows[0][3] == 0.1


@pytest.mark.parametrize(
    ("name", "columns", "told"),
    [
        ("o.npy", WRITTEN, "one array"),
        ("o.npy", (Column("boxes", F64, (-1, 4)),), "fixed size"),
        ("o.npy", (Column("text", np.dtype(object)),), "fixed size"),
        ("o.xlsx", WRITTEN, "nothing here writes .xlsx"),
    ],
)
def test_a_format_that_cannot_hold_the_answers_is_refused(name: str, columns: Sequence[Column], told: str) -> None:
    with pytest.raises(JobInvalid, match=told):
        encoder(Path(name), columns, 2)
