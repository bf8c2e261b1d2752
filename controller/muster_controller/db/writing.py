"""Writing many rows at once, with the fastest statement of each database.

SQLite      INSERT … VALUES (?, …), and the rows one after the other
PostgreSQL  INSERT … SELECT * FROM unnest(%s::text[], …): one statement and one round trip for all rows
"""

from collections.abc import Iterable
from functools import cache

from sqlalchemy import Column, Connection, LargeBinary
from sqlalchemy.dialects import postgresql

from muster_controller.db.rows import Values
from muster_controller.db.tables import Row, table


def insert(connection: Connection, row: type[Row], values: Iterable[Values]) -> None:
    """Add rows; one that is there already is refused. May raise the driver's own errors."""
    _execute(connection, row, values, replace=False)


def upsert(connection: Connection, row: type[Row], values: Iterable[Values]) -> None:
    """Add rows, or put them in the place of those with the same key. No key may come twice."""
    _execute(connection, row, values, replace=True)


def _execute(connection: Connection, row: type[Row], values: Iterable[Values], *, replace: bool) -> None:
    if connection.dialect.name == "postgresql":
        columns = tuple(map(list, zip(*values, strict=True)))
        if columns:
            connection.exec_driver_sql(_statement(row, True, replace), columns)
        return
    # By the driver itself, which takes one row at a time from an iterator: thousands of tuples that live at the same
    # time would set off the garbage collector, which costs as much as writing them does.
    cursor = connection.connection.cursor()
    try:
        cursor.executemany(_statement(row, False, replace), values)  # type: ignore[arg-type]  # Iterators too.
    finally:
        cursor.close()


@cache
def _statement(row: type[Row], is_postgresql: bool, replace: bool) -> str:
    target = table(row)
    columns = [column for column in target.columns if column is not target.autoincrement_column]
    names = [f'"{column.name}"' for column in columns]
    if is_postgresql:
        source = f"SELECT * FROM unnest({', '.join(map(_array, columns))})"
    else:
        source = f"VALUES ({', '.join('?' * len(columns))})"
    statement = f'INSERT INTO "{target.name}" ({", ".join(names)}) {source}'
    if replace:
        keys = {column.name for column in target.primary_key.columns}
        new = ", ".join(f'"{column.name}" = excluded."{column.name}"' for column in columns if column.name not in keys)
        statement += f" ON CONFLICT ({', '.join(sorted(keys))}) DO UPDATE SET {new}"
    return statement


def _array(column: Column[object]) -> str:
    mark = "%b" if isinstance(column.type, LargeBinary) else "%s"  # Bytes as they are, not as hexadecimal text.
    return f"{mark}::{column.type.compile(dialect=postgresql.dialect())}[]"  # type: ignore[no-untyped-call]
