"""Routes: weekly reviews. Reads only: a controller makes them by itself, and each once."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query

from muster_controller.api.authentication import require
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.review import ReviewEntry, ReviewPage, ReviewView
from muster_controller.api.services import Given, Services
from muster_controller.core.review.facts import Review
from muster_controller.core.review.week import Week
from muster_controller.core.review.words import markdown
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission

router = APIRouter(prefix="/reviews", tags=["reviews"], dependencies=[require(Permission.VIEW)])

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]


@router.get("")
def list_reviews(given: Given, limit: Limit = 100, cursor: Offset = None) -> ReviewPage:
    """Which weeks have a review, the newest first."""
    _check_whole(given)
    page, following = paged(given.reviews.weeks(), cursor, limit)
    return ReviewPage(reviews=[ReviewEntry(week=week, made_at=at) for week, at in page], next=following)


@router.get("/now")
def review_so_far(given: Given) -> ReviewView:
    """The week that is not over, as of now; it is not kept."""
    _check_whole(given)
    return _view(given.reviews.so_far())


@router.get("/{week}")
def show_review(given: Given, week: Annotated[str, Path(max_length=20, description="ISO: 2026-W47.")]) -> ReviewView:
    """One week: regressions, suspects, headroom, what is coming, costs; and all of it as Markdown."""
    _check_whole(given)
    return _view(given.reviews.review(Week.parse(week)))


def _view(review: Review) -> ReviewView:
    return ReviewView.model_validate({**msgspec.to_builtins(review), "markdown": markdown(review)})


def _check_whole(given: Services) -> None:
    """Raises Forbidden: a review tells of devices that the asker may not see."""
    if given.is_partial:
        raise Forbidden("a review is of the whole fleet, and you see a part of it; ask an admin for a wider selector")
