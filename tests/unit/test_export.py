"""Exports: what comes out of a file is what went in, in each format; half a file is never left; no formulas."""

import builtins
import csv
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.observed import MODEL, cell
from muster_controller.core.metrics.series import HOST, Group, Series
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.export import tables
from muster_controller.export.lines import parse_series, parse_sums, series_line, sums_line
from muster_controller.export.tables import SERIES, SUMS, ExportFailed, Format, Row, save, series_rows, sums_rows
from muster_shared.errors import WireError
from muster_shared.metrics import HOUR_S, Kind

AT = 1_795_000_800.0 - 1_795_000_800.0 % HOUR_S
MOMENT = datetime.fromtimestamp(AT, UTC)


def mixed(kind: Kind = Kind.CLASSES, sums: Sequence[int] = (700, -3, 0)) -> MixedSum:
    return MixedSum("m/b1", kind, "m", cell(), AT, HOUR_S, 10_000, tuple(sums), 6.25)


def rows(
    kind: Kind = Kind.CLASSES, sums: Sequence[int] = (700, -3, 0), labels: Sequence[str] = ("a", "b")
) -> list[Row]:
    return list(sums_rows(parse_sums(sums_line(mixed(kind, sums), labels))))


def read_parquet(path: Path) -> list[Row]:
    found: list[Row] = pq.read_table(path).to_pylist()
    return found


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_ndjson(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_number_of_a_vector_is_a_row_with_its_name_and_its_noise() -> None:
    found = rows()

    assert [(row["index"], row["label"], row["sum_units"]) for row in found] == [
        (0, "a", 700),
        (1, "b", -3),
        (2, None, 0),
    ]
    assert all(list(row) and set(row) == set(SUMS) for row in found)
    assert {(row["sigma"], row["devices"], row["period_start"]) for row in found} == {(2.5, 10_000, AT)}


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (Kind.FEEDBACK, ["cat, wrong", "cat, right", "class that the release does not know, wrong"]),
        (Kind.INPUTS, ["plain", "out_of_range", "outlier"]),
        (Kind.DRIFT, ["quiet", "drifting", "skewed"]),
        (Kind.LATENCY, [None, None, None]),
    ],
)
def test_indices_have_the_names_of_their_kind(kind: Kind, labels: list[str | None]) -> None:
    assert [row["label"] for row in rows(kind, labels=("cat",))] == labels


def test_parquet_gives_back_what_was_written_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "sums" / "2026-11-18.parquet"

    count = save(path, SUMS, rows(), Format.PARQUET)

    schema = pq.read_schema(path)
    assert (count, schema.names) == (3, list(SUMS))
    assert schema.field("period_start").type == pa.timestamp("ms", tz="UTC")
    assert {str(schema.field(name).type) for name in ("sum_units", "devices", "index")} == {"int64"}
    assert [row["sum_units"] for row in read_parquet(path)] == [700, -3, 0]
    assert read_parquet(path)[0] == {**rows()[0], "period_start": MOMENT}
    assert read_parquet(path)[2]["label"] is None


def test_csv_and_json_lines_say_the_same_in_text(tmp_path: Path) -> None:
    for fmt in (Format.CSV, Format.NDJSON):
        save(tmp_path / fmt.value, SUMS, rows(), fmt)

    lines, cells = read_ndjson(tmp_path / "ndjson"), read_csv(tmp_path / "csv")
    said = MOMENT.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert lines[1] == {**rows()[1], "period_start": said}
    assert (cells[1]["period_start"], cells[1]["sum_units"], cells[1]["late"]) == (said, "-3", "false")
    assert cells[2]["label"] == ""
    assert list(lines[0]) == list(cells[0]) == list(SUMS)


def test_a_series_keeps_what_is_not_known_unknown(tmp_path: Path) -> None:
    point = Series(Group(HOST, HOST, "pi5-cpu"), AT, HOUR_S, 30, 100, cpu_percent_sum=90.0, cpu_told=3)
    line = parse_series(series_line(point))

    save(tmp_path / "s.parquet", SERIES, series_rows(line), Format.PARQUET)

    [row] = read_parquet(tmp_path / "s.parquet")
    assert (row["model"], row["requests"], row["cpu_percent_mean"]) == ("", 100, 30.0)
    assert row["energy_j"] is None
    assert list(row) == list(SERIES)


@pytest.mark.parametrize("count", [0, 1, tables.ROWS, tables.ROWS + 1])
@pytest.mark.parametrize("fmt", list(Format))
def test_any_number_of_rows_is_a_whole_file(tmp_path: Path, fmt: Format, count: int) -> None:
    made = rows(sums=(1,)) * count

    written = save(tmp_path / "t", SUMS, made, fmt)

    read: Callable[[Path], list[Row]] = {
        Format.PARQUET: read_parquet,
        Format.CSV: read_csv,
        Format.NDJSON: read_ndjson,
    }[fmt]
    assert (written, len(read(tmp_path / "t"))) == (count, count)


@pytest.mark.parametrize("fmt", list(Format))
def test_what_breaks_off_leaves_the_file_of_before(tmp_path: Path, fmt: Format) -> None:
    path = tmp_path / "t"
    save(path, SUMS, rows(), fmt)
    before = path.read_bytes()

    def breaking() -> Any:
        yield from rows(sums=(1,)) * (tables.ROWS + 1)
        raise WireError("cut off")

    with pytest.raises(WireError):
        save(path, SUMS, breaking(), fmt)

    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t"]


def test_a_label_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    save(tmp_path / "t", SUMS, rows(labels=("=HYPERLINK(1)", "-1+1", 'a,b\n"c')), Format.CSV)

    assert [row["label"] for row in read_csv(tmp_path / "t")] == ["'=HYPERLINK(1)", "'-1+1", 'a,b\n"c']


def test_without_pyarrow_it_is_said_what_to_install_and_the_rest_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def lacking(name: str, *how: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *how, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)

    with pytest.raises(ExportFailed, match=r"muster-controller\[parquet\]"):
        save(tmp_path / "t", SUMS, rows(), Format.PARQUET)
    assert save(tmp_path / "t", SUMS, rows(), Format.CSV) == 3


@pytest.mark.parametrize("parse", [parse_sums, parse_series])
@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"kind":"odd"}', b"\xff"])
def test_a_line_of_something_else_is_refused(parse: Callable[[bytes], object], line: bytes) -> None:
    with pytest.raises(WireError):
        parse(line)


def test_shares_come_out_of_the_file_as_the_documentation_says(tmp_path: Path) -> None:
    save(tmp_path / "t", SUMS, rows(sums=(640, 320, 40), labels=("a", "b", "c")), Format.PARQUET)

    found = read_parquet(tmp_path / "t")

    total = sum(row["sum_units"] for row in found)
    assert [row["sum_units"] / total for row in found] == [0.64, 0.32, 0.04]
    assert math.isclose(found[0]["sigma"] / total, 0.0025)
    assert {row["model"] for row in found} == {MODEL}
