"""Pages of what has an order but no key of its own: the cursor is how many came before."""

from collections.abc import Iterable
from itertools import islice
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

Offset = Annotated[str | None, Query(pattern="^[0-9]{1,9}$", max_length=9, description="`next` of the page before.")]


def paged(found: Iterable[T], cursor: str | None, limit: int) -> tuple[list[T], str | None]:
    """Return one page, and the cursor of the next; None on the last. `cursor` as `Offset` lets it through."""
    start = int(cursor or 0)
    page = list(islice(found, start, start + limit + 1))
    return page[:limit], str(start + limit) if len(page) > limit else None
