"""Pages before a rollout: the form that writes a policy and shows what it would do, and the way back at once.

They read only. What they show is what `POST /api/v1/rollouts` would do with the document that stands in the page.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.planning import plan
from muster_controller.api.rollouts import list_rollouts, within
from muster_controller.api.schemas import Plan, RolloutSummary
from muster_controller.api.services import Given, Services
from muster_controller.core.policy import Policy, PolicyInvalid
from muster_controller.core.rollout.state import RolloutState
from muster_controller.core.selector import SelectorInvalid
from muster_controller.errors import NotFound
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission
from muster_controller.policy_document import dump
from muster_controller.policy_document.examples import examples
from muster_controller.rehearsing import Rehearsal
from muster_controller.web import proposal
from muster_controller.web.frame import pages, render
from muster_controller.web.policy_form import DOCUMENT_MAX
from muster_controller.web.proposal import Draft, draft, from_document
from muster_shared.errors import WireError
from muster_shared.ids import RolloutId

VERSIONS_SHOWN = 200
ABORTED_READ = 50

router = pages(Permission.OPERATE)

Name = Annotated[str, Query(max_length=64)]


@dataclass(frozen=True)
class Look:
    """What a rollout of a draft would do now: a plan, or why there is none."""

    plan: Plan | None
    why: str
    """In words; empty: nothing is wrong."""


@router.get("/rollouts/new")
def new_rollout_page(
    request: Request,
    given: Given,
    model: Name = "",
    version: Name = "",
    policy_of: Annotated[str, Query(max_length=64, description="A rollout whose policy is taken again.")] = "",
    example: Name = "",
) -> HTMLResponse:
    versions = _versions(given)
    model = model or (next(iter(versions)) if len(versions) == 1 else "")
    found = _draft(request, given, policy_of, example)
    look = _look(given, model, version, found.policy)
    answer = render(
        request,
        "rollout_new.html",
        model=model,
        version=version,
        versions=versions,
        draft=found,
        look=look,
        aborted=_aborted(given, model, version),
        consequence="" if look.plan is None else proposal.consequence(look.plan),
        document_max=DOCUMENT_MAX,
        examples=sorted(examples()),
        is_partial=given.is_partial,
        now=given.clock(),
    )
    if request.headers.get("hx-request"):  # The address says the same without what is empty: it can be shared.
        answer.headers["HX-Replace-Url"] = f"/rollouts/new?{proposal.address(model, version, found)}"
    return answer


@router.get("/rollouts/new/rehearsal")
def rehearsal_part(
    request: Request,
    given: Given,
    model: Name,
    version: Name,
    document: Annotated[str, Query(max_length=DOCUMENT_MAX)] = "",
) -> HTMLResponse:
    """The part of the page that takes seconds: what came of the same policy, tried many times."""
    found = from_document(document or "{}")
    look = _look(given, model, version, found.policy)
    if look.plan is None or found.policy is None:
        raise WireError(look.why or "the document is refused; there is nothing to rehearse")
    answer = given.rehearsals.ask(found.policy, look.plan.classes, proposal.offline_share(look.plan))
    return render(
        request,
        "rollout_rehearsal.html",
        rehearsal=answer if isinstance(answer, Rehearsal) else None,
        refused=None if isinstance(answer, Rehearsal) else answer,
        rows=proposal.outcome_rows(answer) if isinstance(answer, Rehearsal) else (),
        model=model,
        version=version,
        document=document,
    )


@router.get("/rollouts/back")
def roll_back_page(request: Request, given: Given, model: Name = "", to: Name = "") -> HTMLResponse:
    """The whole fleet back to an older release, at once: who that is, before it is ordered."""
    versions = _versions(given)
    model = model or next(iter(versions), "")
    choices = versions.get(model, [])
    to = to or _before(given, model, choices)
    found: Plan | None = None
    if to:
        release = given.release(model, to)
        found = plan(given.committed(), release, given.releases.manifest, None, given.holds)
    return render(
        request,
        "rollout_back.html",
        model=model,
        to=to,
        models=sorted(versions),
        choices=choices,
        plan=found,
        counted=proposal.counted,
        is_partial=given.is_partial,
        now=given.clock(),
    )


def _draft(request: Request, given: Services, policy_of: str, example: str) -> Draft:
    asked = proposal.again(dict(request.query_params))
    if asked.get("document", "").strip() or not (policy_of or example):
        return draft(asked)
    if policy_of:
        return from_document(dump(given.rollout(RolloutId(policy_of)).policy))
    known = examples()
    if example not in known:
        raise NotFound("policy", example)
    return from_document(known[example])


def _look(given: Services, model: str, version: str, policy: Policy | None) -> Look:
    if not (model and version):
        return Look(None, "Choose a model and a version.")
    if policy is None:
        return Look(None, "")
    try:
        release = given.release(model, version)
        mine = policy if given.viewer is None else within(policy, given.viewer)
        return Look(plan(given.committed(), release, given.releases.manifest, mine, given.holds), "")
    except (NotFound, PolicyInvalid, SelectorInvalid, Forbidden, WireError) as error:
        return Look(None, str(error))


def _aborted(given: Services, model: str, version: str) -> RolloutSummary | None:
    """Return the last rollout of the release that was aborted, of those that were of late."""
    if not (model and version):
        return None
    found = list_rollouts(given, state=RolloutState.ABORTED, model=model, q=None, limit=ABORTED_READ, cursor=None)
    return next((each for each in found.rollouts if each.version == version), None)


def _versions(given: Services) -> dict[str, list[str]]:
    """Return the published versions of each model, the newest first."""
    found: dict[str, list[str]] = {}
    for release in sorted(given.releases.releases(), key=lambda each: -each.release):
        found.setdefault(release.model, []).append(release.version)
    return {name: found[name][:VERSIONS_SHOWN] for name in sorted(found)}


def _before(given: Services, model: str, versions: list[str]) -> str:
    """Return the newest version that is older than what the fleet should run; empty: there is none."""
    wanted = next(
        (found[0].release.version for name, found in given.committed().baselines.items() if name == model and found),
        None,
    )
    if wanted in versions:
        return next(iter(versions[versions.index(wanted) + 1 :]), "")
    return versions[0] if versions and wanted is None else ""
