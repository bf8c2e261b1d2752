"""Pages of what has an order but no key of its own: the cursor is how many came before."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

Offset = Annotated[str | None, Query(pattern="^[0-9]{1,9}$", max_length=9, description="`next` of the page before.")]


def paged(found: Iterable[T], cursor: str | None, limit: int) -> tuple[list[T], str | None]:
    """Return one page, and the cursor of the next; None on the last. `cursor` as `Offset` lets it through."""
    start = int(cursor or 0)
    return cut(list(islice(found, start, start + limit + 1)), cursor, limit)


def cut(found: Sequence[T], cursor: str | None, limit: int) -> tuple[list[T], str | None]:
    """Return the same of a page that begins at the cursor already, and has one more if there is a next."""
    return list(found[:limit]), str(int(cursor or 0) + limit) if len(found) > limit else None
