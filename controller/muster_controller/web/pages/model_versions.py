"""Pages of one release of a model, and of two against each other."""

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.models import show_model
from muster_controller.api.release_views import comparison, facts, use_view
from muster_controller.api.releases import known_release, served, trust_of
from muster_controller.api.services import Given
from muster_controller.api.views import version_detail
from muster_controller.errors import NotFound
from muster_controller.web import prose
from muster_controller.web.frame import pages, render
from muster_controller.web.lineage import lineage
from muster_controller.web.model_present import class_places, key_short, label_places, latency_plot, signatures
from muster_controller.web.pages.metrics import compare
from muster_controller.web.pages.models import ancestry, model_rows
from muster_shared.metrics import DAY_S, HOUR_S

COMPARED_DAYS = 14

router = pages()


@router.get("/models/{model}/versions/{version}")
def version_page(request: Request, given: Given, model: str, version: str) -> HTMLResponse:
    found, now = known_release(given, model, version), given.clock()
    name = found.release.model
    view = show_model(given, name)
    trust = trust_of(given, found)
    use = use_view(name, version, served(given, name, version))
    notes = given.reader.notes(subject=name, what=["release_published"], limit=100)
    place = view.versions.index(version) if version in view.versions else 0
    return render(
        request,
        "model_version.html",
        model=view,
        release=version_detail(found.release, found.manifest, is_revoked=found.is_revoked),
        manifest=found.manifest,
        facts=facts(found.manifest),
        card=prose.blocks(found.manifest.card),
        trust=trust,
        signed=signatures(trust, now),
        key_short=key_short,
        use=use,
        classes=class_places(use),
        labels=label_places(use),
        published=next((each.note for each in notes if each.note.detail == f"{name} {version}"), None),
        before=view.versions[place - 1] if place else None,
        graph=lineage(name, ancestry(model_rows(given, view)), version),
        now=now,
    )


@router.get("/models/{model}/compare")
def compare_page(
    request: Request,
    given: Given,
    model: str,
    before: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    view, now = show_model(given, model), given.clock()
    if len(view.versions) < 2 and not (before and after):
        raise NotFound("release to compare with", model, "comparing takes two; publish another release first")
    after = after or view.versions[-1]
    before = before or next((each for each in reversed(view.versions) if each != after), after)
    old, new = known_release(given, view.name, before), known_release(given, view.name, after)
    uses = (served(given, each.release.model, each.release.version) for each in (old, new))
    found = comparison(view.name, (old.manifest, new.manifest), *uses)
    begin = (now - COMPARED_DAYS * DAY_S) // HOUR_S * HOUR_S
    seen = {each.cell.version for each in given.metrics.known(view.name)}
    return render(
        request,
        "model_compare.html",
        model=view,
        found=found,
        latency=latency_plot(found.latency, before, after),
        metrics=compare(given, view.name, before, after, begin, now) if {before, after} <= seen else None,
        days=COMPARED_DAYS,
        now=now,
    )
