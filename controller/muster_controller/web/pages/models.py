"""Pages of the registry: every model, one model with its versions and lineage."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.models import list_models, show_model
from muster_controller.api.schemas import ModelView
from muster_controller.api.services import Given, Services
from muster_controller.api.views import note_view
from muster_controller.registry.metadata import release_role
from muster_controller.registry.signatures import newest_targets, role_steps, role_trusts
from muster_controller.web import present
from muster_controller.web.frame import pages, render
from muster_controller.web.lifetimes import of_metadata
from muster_controller.web.lineage import Ancestry, lineage
from muster_controller.web.model_present import ModelCard, ReleaseRow, key_short, release_rows
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef

MODELS_SHOWN = 50
RELEASES_SHOWN = 5
VERSIONS_SHOWN = 500
NOTES_SHOWN = 12

router = pages()


@router.get("/models")
def models_page(
    request: Request, given: Given, cursor: Annotated[str | None, Query(max_length=64)] = None
) -> HTMLResponse:
    page = list_models(given, limit=MODELS_SHOWN, cursor=cursor)
    bars = {bar.model: bar for bar in present.model_bars(page.models)}
    headlines = given.reader.headlines()
    by_model = _releases(given)
    return render(
        request,
        "models.html",
        models=[
            ModelCard(
                view,
                bars.get(view.name),
                release_rows(view, by_model.get(view.name, []), RELEASES_SHOWN),
                max(0, len(view.versions) - RELEASES_SHOWN),
                headlines.get(view.name),
            )
            for view in page.models
        ],
        next_cursor=page.next,
        initialised=given.releases.repository.is_ready,
        now=given.clock(),
    )


@router.get("/models/{model}")
def model_page(request: Request, given: Given, model: str) -> HTMLResponse:
    view, now = show_model(given, model), given.clock()
    name = ModelName(view.name)
    rows = model_rows(given, view)
    role = release_role(name)
    messages = given.releases.trust_messages()
    trust = next((each for each in role_trusts(messages) if each.role == role), None)
    return render(
        request,
        "model.html",
        model=view,
        rows=rows,
        bar=next(iter(present.model_bars([view])), None),
        graph=lineage(name, ancestry(rows)),
        role=trust,
        life=None if trust is None or trust.expires_at is None else of_metadata(role, trust.expires_at, now),
        steps=_steps(given, role),
        key_short=key_short,
        last=given.reader.headlines().get(name),
        notes=[note_view(entry) for entry in given.reader.notes(subject=name, limit=NOTES_SHOWN)],
        now=now,
    )


def model_rows(given: Services, view: ModelView) -> tuple[ReleaseRow, ...]:
    """Return the releases of a model that are published, newest first."""
    return release_rows(view, _releases(given).get(view.name, []), VERSIONS_SHOWN)


def ancestry(rows: Sequence[ReleaseRow]) -> list[Ancestry]:
    return [
        Ancestry(row.release.version, row.release.release, row.manifest.lineage.parents, row.devices, row.is_baseline)
        for row in rows
    ]


def _releases(given: Services) -> dict[str, list[tuple[ReleaseRef, Manifest]]]:
    found: dict[str, list[tuple[ReleaseRef, Manifest]]] = {}
    for release in given.releases.releases():
        manifest = given.releases.manifest(release.bundle_sha256)
        if manifest is not None:
            found.setdefault(release.model, []).append((release, manifest))
    return found


def _steps(given: Services, role: str) -> list[tuple[int, str]]:
    """Return what each version of the role's metadata brought and took, in words, the newest first."""
    repository = given.releases.repository
    if not repository.is_ready:
        return []
    targets = newest_targets(repository.trust_messages())
    found = () if targets is None else role_steps(role, targets, repository.role_versions(role))
    told = []
    for step in found:
        parts = [
            f"{verb} {', '.join(path.split('/')[-2] for path in paths)}"
            for verb, paths in (("added", step.added), ("revoked", step.removed))
            if paths
        ]
        signed = f"signed by {len(step.signed_by) + step.others} keys"
        told.append((step.version, f"{'; '.join(parts) or 'renewed'}, {signed}"))
    return told
