"""Views of what the metrics tell. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime

from muster_controller.api.schemas.metrics import (
    BudgetView,
    CellView,
    ComparedView,
    ComparisonView,
    DifferenceView,
    FigureView,
    HeadroomView,
    KindTermsView,
    MixerReport,
    MixerTermsView,
    NamedFigure,
    OperationsPoint,
    ReleaseTermsView,
    SliceView,
    StatementView,
)
from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.series import Headroom, Series
from muster_controller.core.metrics.slices import Comparison, Difference, Slice
from muster_controller.core.metrics.statement import Statement, markdown
from muster_controller.db.metrics_store import Known, MixerEntry
from muster_shared.metrics import DAY_S, eps


def figure_view(figure: Figure) -> FigureView:
    return FigureView(
        value=figure.value,
        low=figure.low,
        high=figure.high,
        devices=figure.devices,
        periods=figure.periods,
        rho=figure.rho,
        eps=figure.eps,
        noise=figure.noise,
        sample=figure.sample,
    )


def named_views(figures: Mapping[str, Figure]) -> list[NamedFigure]:
    return [NamedFigure(name=name, figure=figure_view(figure)) for name, figure in figures.items()]


def cell_view(known: Known) -> CellView:
    return CellView(
        version=known.cell.version,
        device_class=known.cell.device_class,
        region=known.cell.region,
        classes=known.cell.classes,
        kinds=list(known.kinds),
        first=known.first,
        last=known.last,
        devices=known.devices,
    )


def comparison_view(
    found: Comparison, *, model: str, before: str, after: str, since: float, until: float
) -> ComparisonView:
    figures = [
        _compared(name, *each)
        for name, each in (
            ("accuracy", found.accuracy),
            ("confidence", found.confidence),
            ("not_answered", found.failures),
        )
    ]
    figures += [
        _compared(f"latency_ms_p{quantile * 100:g}", *each, Difference()) for quantile, each in found.latency_ms.items()
    ]
    return ComparisonView(
        model=model,
        before=before,
        after=after,
        since=since,
        until=until,
        figures=figures,
        classes=[_compared(*each) for each in found.classes],
    )


def _compared(name: str, before: Figure, after: Figure, found: Difference) -> ComparedView:
    difference = DifferenceView(value=found.value, low=found.low, high=found.high, p=found.p, e=_finite(found.e))
    return ComparedView(name=name, before=figure_view(before), after=figure_view(after), difference=difference)


def slice_view(found: Slice) -> SliceView:
    return SliceView(
        measure=found.measure,
        dimension=found.dimension,
        name=found.name,
        before=figure_view(found.before),
        after=figure_view(found.after),
        worse=found.worse,
        low=found.worse_low,
        high=found.worse_high,
        p=found.p,
        p_adjusted=found.p_adjusted,
        e=_finite(found.e),
        is_regression=found.is_regression,
        is_hidden=found.is_hidden,
    )


def mixer_report(entry: MixerEntry) -> MixerReport:
    state = entry.state
    return MixerReport(
        mixer=entry.id,
        created_at=entry.created_at,
        created_by=entry.created_by,
        seen_at=None if state is None else entry.seen_at,
        key=None if state is None else state.key,
        cohorts=[] if state is None else list(state.cohorts),
        k_min=None if state is None else state.k_min,
        delta=None if state is None else state.delta,
        eps_day=None if state is None else state.eps_day,
        eps_30_days=None if state is None else state.eps_30_days,
        windows=None if state is None else state.windows,
        refused=None if state is None else state.refused,
        repeated=None if state is None else state.repeated,
        too_late=None if state is None else state.too_late,
        suppressed=None if state is None else state.suppressed,
        out_of_budget=None if state is None else state.out_of_budget,
        budgets=[]
        if state is None
        else [
            BudgetView(
                day=_day(each.day),
                rho_spent=each.rho_spent,
                rho_budget=each.rho_budget,
                eps_spent=eps(each.rho_spent) if each.rho_spent else 0.0,
            )
            for each in state.budgets
        ],
    )


def operations_point(point: Series) -> OperationsPoint:
    return OperationsPoint(
        at=point.at,
        version=point.group.version,
        device_class=point.group.device_class,
        region=point.group.region,
        devices=point.devices,
        requests=point.requests,
        errors=point.errors,
        slow=point.slow,
        inferences=point.inferences,
        cpu_ms=point.cpu_ms,
        energy_j=point.energy_j,
        bytes_sent=point.bytes_sent,
        bytes_received=point.bytes_received,
        latency_ms_p95_max=point.latency_ms_p95_max,
        cpu_percent_mean=point.cpu_percent_mean,
        cpu_percent_max=point.cpu_percent_max,
    )


def headroom_view(found: Headroom) -> HeadroomView:
    return HeadroomView(
        device_class=found.device_class,
        at=found.at,
        cpu_percent=found.cpu_percent,
        cpu_percent_max=found.cpu_percent_max,
        devices=found.devices,
        requests_peak=found.requests_peak,
        requests_peak_at=found.requests_peak_at,
        factor=found.factor,
    )


def statement_view(found: Statement) -> StatementView:
    return StatementView(
        fleet=found.fleet,
        made_at=found.made_at,
        units=found.units,
        window_bytes=found.window_bytes,
        cohorts=found.cohorts,
        k_min=found.k_min,
        rho_day=found.rho_day,
        releases_a_day=found.releases_a_day,
        delta=found.delta,
        eps_day=found.eps_day,
        eps_30_days=found.eps_30_days,
        kinds=[
            KindTermsView(
                kind=each.kind,
                what=each.what,
                sigma_units=each.sigma_units,
                sigma_devices=each.sigma_devices,
                rho=each.rho,
            )
            for each in found.kinds
        ],
        releases=[
            ReleaseTermsView(model=each.model, version=each.version, allow=list(each.allow)) for each in found.releases
        ],
        mixers=[
            MixerTermsView(
                mixer=each.mixer,
                seen_at=each.seen_at,
                key=each.key,
                cohorts=list(each.cohorts),
                k_min=each.k_min,
                delta=each.delta,
                eps_day=each.eps_day,
                eps_30_days=each.eps_30_days,
                suppressed=each.suppressed,
                out_of_budget=each.out_of_budget,
                problems=list(each.problems),
            )
            for each in found.mixers
        ],
        operational=list(found.operational),
        never_sent=list(found.never_sent),
        limits=list(found.limits),
        markdown=markdown(found),
    )


def _day(number: int) -> str:
    """Return the date of a day since 1970; the number where it is no date."""
    try:
        return datetime.fromtimestamp(number * DAY_S, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return str(number)


def _finite(e: float | None) -> float | None:
    """Return evidence as JSON can carry it."""
    return None if e is None else min(e, 1e300)
