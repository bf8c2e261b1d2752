"""Routes: what the anonymous metrics and the operational series tell, and the privacy statement. Reads only.

Noised sums name no device, and are shown to everybody who may look at the fleet. Operational series are sums over
devices that may be other people's: who sees a part of the fleet alone does not see them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse

from muster_controller.api.authentication import require
from muster_controller.api.metrics_views import (
    cell_view,
    comparison_view,
    headroom_view,
    mixer_report,
    named_views,
    operations_point,
    slice_view,
    statement_view,
)
from muster_controller.api.schemas.metrics import (
    ComparisonView,
    FiguresAt,
    FiguresView,
    HeadroomPage,
    MeasuredModel,
    MeasuredModels,
    MixerReports,
    OperationsView,
    SlicesView,
    StatementView,
)
from muster_controller.api.services import Given, Services
from muster_controller.core.metrics import series as series_of
from muster_controller.core.metrics import slices as slices_of
from muster_controller.core.metrics.slices import Labelled
from muster_controller.db.metrics_store import Known
from muster_controller.errors import NotFound
from muster_controller.metrics import questions
from muster_controller.metrics.questions import STEPS, STEPS_MAX, Asked, Figures, Step
from muster_controller.metrics.stating import stated
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission
from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, Kind

HEADROOM_S = 7 * DAY_S
COMPARED_S = 14 * DAY_S
OPERATIONS_S = {"5m": series_of.BIN_S, "hour": HOUR_S, "day": DAY_S}
OPERATIONS_STEPS = 288
"""Of one answer; so many 5 minutes are a day."""

router = APIRouter(prefix="/metrics", tags=["metrics"], dependencies=[require(Permission.VIEW)])

Name = Annotated[str | None, Query(max_length=64)]
Since = Annotated[
    float | None, Query(alias="from", ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds; null: see `step`.")
]
Until = Annotated[
    float | None, Query(alias="to", ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds; null: now.")
]
Version = Annotated[str, Query(max_length=64, description="Of a release.")]


@router.get("/models")
def list_measured(given: Given) -> MeasuredModels:
    """What there are sums of, all in one page: models, and of each its releases by device class and region."""
    models: dict[str, list[Known]] = {}
    for each in given.metrics.known():
        models.setdefault(each.cell.model, []).append(each)
    return MeasuredModels(
        models=[MeasuredModel(model=name, cells=[cell_view(each) for each in found]) for name, found in models.items()]
    )


@router.get("/mixers")
def list_mixers(given: Given) -> MixerReports:
    """The mixers, all in one page: what they took, what they did not publish, and what of the budget is spent."""
    return MixerReports(mixers=[mixer_report(each) for each in given.metrics.mixers()])


@router.get("/statement")
def show_statement(given: Given) -> StatementView:
    """The privacy statement with the parameters in force, as fields and as Markdown."""
    return statement_view(stated(given.fleet_id, given.clock(), given.releases, given.metrics))


class MarkdownResponse(PlainTextResponse):
    media_type = "text/markdown"


@router.get("/statement.md", response_class=MarkdownResponse)
def show_statement_text(given: Given) -> MarkdownResponse:
    """The privacy statement for people, as Markdown."""
    return MarkdownResponse(given.statement())


@router.get("/headroom")
def show_headroom(given: Given, since: Since = None, until: Until = None) -> HeadroomPage:
    """How much each device class has left in its busiest hour, all in one page; of the last week if not asked."""
    _check_whole(given)
    begin, end = _between(given, since, until, HEADROOM_S, COMPARED_S, HOUR_S)
    hours = given.metrics.series(series_of.HOST, HOUR_S, begin, end)
    return HeadroomPage(since=begin, until=end, classes=[headroom_view(each) for each in series_of.headroom(hours)])


def _asked(
    given: Given,
    model: str,
    version: Name = None,
    device_class: Name = None,
    region: Annotated[str | None, Query(max_length=64, description="Empty: devices without one.")] = None,
    since: Since = None,
    until: Until = None,
    step: Annotated[
        Step, Query(description="hour: the last day where no time is given, 14 days at most; day: 30, and 366 at most.")
    ] = Step.HOUR,
) -> Asked:
    ids.name(model, "model")
    if version is not None:
        ids.version(version)
    default, most = STEPS[step] * step.seconds, STEPS_MAX[step] * step.seconds
    begin, end = _between(given, since, until, default, most, step.seconds)
    return Asked(model, begin, end, step, version, device_class, region)


Question = Annotated[Asked, Depends(_asked)]


@router.get("/{model}/classes")
def show_classes(given: Given, asked: Question) -> FiguresView:
    """The share of each class among what devices saw; every device has the same weight."""
    return _figures(given, asked, Kind.CLASSES, questions.classes(_labels(given, asked.model, asked.version)))


@router.get("/{model}/confidence")
def show_confidence(given: Given, asked: Question) -> FiguresView:
    """How sure the model was: the mean, and the share of each twentieth."""
    return _figures(given, asked, Kind.CONFIDENCE, questions.confidence)


@router.get("/{model}/latency")
def show_latency(given: Given, asked: Question) -> FiguresView:
    """Quantiles of the engine's latency, in milliseconds."""
    return _figures(given, asked, Kind.LATENCY, questions.latency)


@router.get("/{model}/accuracy")
def show_accuracy(given: Given, asked: Question) -> FiguresView:
    """How often labelled inferences were right: overall and by true class."""
    return _figures(given, asked, Kind.FEEDBACK, questions.accuracy(_labels(given, asked.model, asked.version)))


@router.get("/{model}/inputs")
def show_inputs(given: Given, asked: Question) -> FiguresView:
    """What requests were like: plain, out of range, outliers, and those that were not answered."""
    return _figures(given, asked, Kind.INPUTS, questions.inputs)


@router.get("/{model}/drift")
def show_drift(given: Given, asked: Question) -> FiguresView:
    """The share of devices whose own detectors say that inputs drift."""
    return _figures(given, asked, Kind.DRIFT, questions.drift)


@router.get("/{model}/compare")
def compare_releases(
    given: Given,
    model: str,
    before: Version,
    after: Version,
    device_class: Name = None,
    region: Name = None,
    after_class: Annotated[
        str | None, Query(max_length=64, description="Where it differs from `device_class`.")
    ] = None,
    after_region: Annotated[str | None, Query(max_length=64, description="Where it differs from `region`.")] = None,
    since: Since = None,
    until: Until = None,
) -> ComparisonView:
    """Two releases side by side, or two device classes or regions: the difference and what it is worth.

    Of 14 days if no time is given.
    """
    asked = _both(given, model, before, after, device_class, region, since, until)
    other = replace(
        asked,
        device_class=device_class if after_class is None else after_class,
        region=region if after_region is None else after_region,
    )
    old, new = questions.sums(given.metrics, asked, before), questions.sums(given.metrics, other, after)
    found = slices_of.compare(old, new, _both_labels(given, model, before, after))
    return comparison_view(found, model=model, before=before, after=after, since=asked.since, until=asked.until)


@router.get("/{model}/slices")
def list_slices(
    given: Given,
    model: str,
    before: Version,
    after: Version,
    device_class: Name = None,
    region: Name = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="The surest so many, all in one page.")] = 100,
) -> SlicesView:
    """Where `after` is worse than `before`: by true class, device class and region, each tested; the surest first."""
    asked = _both(given, model, before, after, device_class, region, since, until)
    old, new = (questions.sums(given.metrics, asked, version) for version in (before, after))
    found = slices_of.slices(old, new, labels=_both_labels(given, model, before, after))
    tested = sum(each.p is not None for each in found)
    return SlicesView(
        model=model,
        before=before,
        after=after,
        since=asked.since,
        until=asked.until,
        tested=tested,
        untested=len(found) - tested,
        regressions=sum(each.is_regression for each in found),
        slices=[slice_view(each) for each in found[:limit]],
    )


@router.get("/{model}/operations")
def show_operations(
    given: Given,
    model: str,
    version: Name = None,
    device_class: Name = None,
    region: Name = None,
    since: Since = None,
    until: Until = None,
    step: Literal["5m", "hour", "day"] = "hour",
) -> OperationsView:
    """Requests, errors, processor time, energy and bytes, from the twins; 288 steps at most. Not anonymous."""
    _check_whole(given)
    ids.name(model, "model")
    step_s = OPERATIONS_S[step]
    begin, end = _between(given, since, until, 24 * step_s, OPERATIONS_STEPS * step_s, step_s)
    points = given.metrics.series(model, step_s, begin, end, version, device_class, region)
    if not points:
        _check_known(given, model)
    return OperationsView(
        model=model, step=step, since=begin, until=end, points=[operations_point(each) for each in points]
    )


def _figures(given: Services, asked: Asked, kind: Kind, figures: Figures) -> FiguresView:
    found = questions.answer(given.metrics, asked, kind, figures)
    if not found.points:
        _check_known(given, asked.model)
    return FiguresView(
        model=asked.model,
        kind=kind,
        version=asked.version,
        device_class=asked.device_class,
        region=asked.region,
        since=asked.since,
        until=asked.until,
        step=asked.step,
        figures=named_views(found.figures),
        points=[FiguresAt(at=at, figures=named_views(some)) for at, some in found.points],
    )


def _both(
    given: Services,
    model: str,
    before: str,
    after: str,
    device_class: str | None,
    region: str | None,
    since: float | None,
    until: float | None,
) -> Asked:
    ids.name(model, "model")
    ids.version(before)
    ids.version(after)
    begin, end = _between(given, since, until, COMPARED_S, 366 * DAY_S, HOUR_S)
    if end - begin > 35 * DAY_S:  # Of what is older there are days alone.
        begin, end = begin - begin % DAY_S, end
    known = {each.cell.version for each in given.metrics.known(model)}
    for version in (before, after):
        if version not in known:
            _check_known(given, model)
            hint = f"sums there are of {', '.join(sorted(known)) or 'none of its releases'}"
            raise NotFound("release", f"{model} {version}", hint)
    return Asked(model, begin, end, Step.DAY, None, device_class, region)


def _between(
    given: Services, since: float | None, until: float | None, default_s: int, most_s: int, step_s: int
) -> tuple[float, float]:
    """Return when to begin and to end, at the beginning and end of steps. Raises WireError."""
    now = given.clock()
    end = now if until is None else until
    if since is not None and since >= end:
        raise WireError("`from` is not before `to`; both are Unix seconds")
    end += -end % step_s
    begin = end - default_s if since is None else since - since % step_s
    if end - begin > most_s:
        raise WireError(f"that is more than {most_s // DAY_S} days of this step; ask for fewer, or for `step=day`")
    return max(0.0, begin), end


def _labels(given: Services, model: str, version: str | None) -> Sequence[str]:
    """Return what the classes of a release are called; of all together where all call them the same."""
    found = {
        manifest.labels
        for each in given.releases.releases()
        if each.model == model
        and version in (None, each.version)
        and (manifest := given.releases.manifest(each.bundle_sha256)) is not None
    }
    return found.pop() if len(found) == 1 else ()


def _both_labels(given: Services, model: str, before: str, after: str) -> Labelled | None:
    old, new = _labels(given, model, before), _labels(given, model, after)
    return (old, new) if old and new else None


def _check_known(given: Services, model: str) -> None:
    """Raise NotFound for a model that neither was published nor has sums."""
    if any(each.model == ModelName(model) for each in given.releases.releases()) or given.metrics.known(model):
        return
    raise NotFound("model", model)


def _check_whole(given: Services) -> None:
    if given.is_partial:
        raise Forbidden(
            "operational series are sums over all devices, and you see some of them alone; ask somebody who sees all"
        )
