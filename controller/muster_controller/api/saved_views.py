"""Routes: filters of lists that one keeps under a name. Everybody has only their own."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from muster_controller.api.authentication import Who, require
from muster_controller.api.fleet import Limit
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.labels import SavedView, SavedViewPage, ViewOrder
from muster_controller.api.services import Given
from muster_controller.db.view_store import KeptView
from muster_controller.operators.roles import Permission

PageName = Annotated[str, Path(pattern="^[a-z][a-z-]{0,31}$", description="`devices`, or another list.")]
ViewName = Annotated[str, Path(pattern=r"^[^\x00-\x1f\x7f/]{1,64}$", description="What it is called.")]

router = APIRouter(prefix="/views", tags=["views"], dependencies=[require(Permission.ACCOUNT)])


@router.get("")
def list_views(
    given: Given,
    who: Who,
    page: Annotated[str | None, Query(max_length=32, description="Only of this list.")] = None,
    limit: Limit = 100,
    cursor: Offset = None,
) -> SavedViewPage:
    """One's own views, by page and name."""
    found, following = paged(given.views.views(who.name, page), cursor, limit)
    return SavedViewPage(views=[_view(each) for each in found], next=following)


@router.put("/{page}/{name}")
def save_view(given: Given, who: Who, page: PageName, name: ViewName, order: ViewOrder) -> SavedView:
    """Keep a view, or put another in its place."""
    return _view(given.views.save(who.name, page, name, order.query))


@router.delete("/{page}/{name}", status_code=204)
def remove_view(given: Given, who: Who, page: PageName, name: ViewName) -> Response:
    """Remove one of your saved views."""
    given.views.remove(who.name, page, name)
    return Response(status_code=204)


def _view(kept: KeptView) -> SavedView:
    return SavedView(page=kept.page, name=kept.name, query=kept.query, saved_at=kept.saved_at)
