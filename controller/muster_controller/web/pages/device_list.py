"""The list of devices, the completion of its selector, and the map of labels."""

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.asking import filter_of, listing_of
from muster_controller.api.authentication import Who
from muster_controller.api.labels import completions, label_view
from muster_controller.api.services import Given
from muster_controller.api.standing import Standing
from muster_controller.api.views import device_view
from muster_controller.fleet_index.view import parse_order
from muster_controller.web import device_list_present as present
from muster_controller.web.frame import pages, render

CLASSES_OFFERED = 200
KEYS_SHOWN = 30
VALUES_SHOWN = 12
CROSSED_MAX = 30  # Values of each of the two labels.
COMPLETIONS = 30

router = pages()


@router.get("/devices")
def device_list(request: Request, given: Given, who: Who) -> HTMLResponse:
    asked = listing_of({key: request.query_params.getlist(key) for key in request.query_params})
    fleet = given.committed()
    wanted = filter_of(asked, given)
    found = fleet.view.page(wanted, parse_order(asked.sort), asked.cursor, asked.limit)
    whole = fleet.view.sums()
    query = present.query_of(asked)
    return render(
        request,
        "devices.html",
        now=given.clock(),
        asked=asked,
        query=query,
        is_filtered=present.choice(asked) != "{}",
        filter_words=present.filter_words(asked),
        choice=present.choice(asked),
        headings=present.headings(asked),
        standing_links=present.standing_links(asked, fleet.view.sums(wanted)),
        devices=[device_view(fleet.devices[each], fleet.desired.get(each)) for each in found.devices],
        held=given.holds.all(),
        found=found.total,
        total=whole.devices,
        next_href=None if found.next is None else present.address(asked, cursor=found.next),
        first_href=present.address(asked, cursor=None),
        standings=list(Standing),
        classes=list(whole.classes)[:CLASSES_OFFERED],
        versions=sorted({(each.model, each.version) for each in whole.versions}),
        completions=completions(fleet.view, asked.selector, COMPLETIONS),
        views=given.views.views(who.name, "devices"),
        broker_url=given.broker_url,
    )


@router.get("/complete/selector")
def complete_selector(
    request: Request, given: Given, selector: Annotated[str, Query(max_length=1024)] = ""
) -> HTMLResponse:
    """The options of the selector's field: whole texts that go on from what is typed."""
    return render(request, "completions.html", completions=completions(given.committed().view, selector, COMPLETIONS))


@router.get("/labels")
def label_map(
    request: Request,
    given: Given,
    by: Annotated[str, Query(max_length=128)] = "",
    and_: Annotated[str, Query(alias="and", max_length=128)] = "",
) -> HTMLResponse:
    view = given.committed().view
    keys = view.label_keys()
    shown = sorted(keys, key=lambda each: (each.key.startswith(("hw/", "agent/")), each.key))
    crossed: tuple[present.CrossRow, ...] = ()
    across: list[str] = []
    if by and and_:
        rows = [each.value for each in view.label_values(by, CROSSED_MAX)]
        across = [each.value for each in view.label_values(and_, CROSSED_MAX)]
        crossed = present.cross_rows(by, rows, and_, across, view.crossed(by, rows, and_, across))
    return render(
        request,
        "labels.html",
        now=given.clock(),
        keys=[each.key for each in shown],
        panels=[present.key_panel(label_view(view, each, VALUES_SHOWN)) for each in shown[:KEYS_SHOWN]],
        hidden=max(0, len(keys) - KEYS_SHOWN),
        total=view.total,
        by=by,
        and_=and_,
        across=across,
        crossed=crossed,
        crossed_max=CROSSED_MAX,
    )
