"""What the metrics tell: figures with intervals and what they cost, comparisons, slices, mixers and the statement."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from muster_controller.api.schemas.base import Schema
from muster_controller.core.metrics.slices import Dimension, Measure
from muster_controller.metrics.questions import Step
from muster_shared.metrics import Kind

_FIGURE: JsonDict = {
    "value": 0.101,
    "low": 0.0973,
    "high": 0.1047,
    "devices": 10000,
    "periods": 24,
    "rho": 0.06144,
    "eps": 1.904,
    "noise": 0.0004,
    "sample": 0.003,
}
_ASKED: JsonDict = {
    "model": "digits",
    "version": "1.4.0",
    "device_class": "pi5-cpu",
    "region": "north",
    "since": 1800000000.0,
    "until": 1800086400.0,
    "step": "hour",
}


class FigureView(Schema):
    """One number with its 95 % interval. Unknown is null, never 0: the interval would say nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"example": _FIGURE})

    value: float | None
    low: float | None
    high: float | None
    devices: int = Field(description="The most that were in it in any one period, exact.")
    periods: int = Field(description="Windows of one device that may be in it.")
    rho: float = Field(
        description="zCDP that it cost a device, with all figures of the same kind and periods together."
    )
    eps: float = Field(description="Of (eps, 1e-6) differential privacy: what `rho` implies.")
    noise: float | None = Field(description="Standard deviation from the privacy noise alone.")
    sample: float | None = Field(
        description="Standard deviation from there being only so many devices, at worst: as if each gave all to one"
        " class."
    )


class NamedFigure(Schema):
    name: str = Field(description="A class's label, or its index; a quantile, `mean`, `all`, or a kind of input.")
    figure: FigureView


class FiguresAt(Schema):
    at: float = Field(description="Beginning of the hour or day.")
    figures: list[NamedFigure]


class FiguresView(Schema):
    """Figures over all that was asked about, and step by step (the largest 12)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                **_ASKED,
                "kind": "classes",
                "figures": [{"name": "7", "figure": _FIGURE}],
                "points": [{"at": 1800000000.0, "figures": [{"name": "7", "figure": _FIGURE}]}],
            }
        },
    )

    model: str
    kind: Kind
    version: str | None = Field(description="null: all of them together.")
    device_class: str | None
    region: str | None
    since: float
    until: float
    step: Step
    figures: list[NamedFigure]
    points: list[FiguresAt] = Field(description="Oldest first; a step of which nothing was published is not there.")


class DifferenceView(Schema):
    """After minus before."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None = Field(
        description="Two-sided, that nothing differs; of classes corrected for their number (Holm)."
    )
    e: float | None = Field(description="The same as an e-value: those of several looks may be averaged.")


class ComparedView(Schema):
    name: str
    before: FigureView
    after: FigureView
    difference: DifferenceView


class ComparisonView(Schema):
    """Two releases side by side, over the same time."""

    model: str
    before: str
    after: str
    since: float
    until: float
    figures: list[ComparedView] = Field(
        description="accuracy, confidence, not_answered, and latency in ms, which has no test: intervals that do not"
        " meet differ."
    )
    classes: list[ComparedView] = Field(description="Shares, of the classes that both have.")


class SliceView(Schema):
    """One part of what a release does, against the same part of another."""

    measure: Measure
    dimension: Dimension
    name: str
    before: FigureView
    after: FigureView
    worse: float | None = Field(description="By how much `after` is worse; below 0 it is better.")
    low: float | None
    high: float | None
    p: float | None = Field(description="One-sided, that it is no worse; null: too little is in it to test.")
    p_adjusted: float | None = Field(description="For all slices that were tested (Holm).")
    e: float | None
    is_regression: bool
    is_hidden: bool = Field(description="Whether the average got no worse while this did.")


class SlicesView(Schema):
    """Where a release is worse, the surest first, then the rest; those with too little in them last."""

    model: str
    before: str
    after: str
    since: float
    until: float
    tested: int
    untested: int
    regressions: int
    slices: list[SliceView] = Field(description="At most `limit`.")


class CellView(Schema):
    version: str
    device_class: str
    region: str
    classes: int
    kinds: list[Kind]
    first: float = Field(description="Beginning of the first day that there is.")
    last: float
    devices: int = Field(description="The most in any hour.")


class MeasuredModel(Schema):
    model: str
    cells: list[CellView]


class MeasuredModels(Schema):
    """What there are sums of."""

    models: list[MeasuredModel]


class BudgetView(Schema):
    day: str = Field(description="Of what was measured.", examples=["2026-11-22"])
    rho_spent: float
    rho_budget: float
    eps_spent: float


class MixerReport(Schema):
    """A mixer, as it described itself last. What it has not said is null."""

    mixer: str
    created_at: float
    created_by: str
    seen_at: float | None
    key: str | None = Field(description="Which key devices seal their windows to.")
    cohorts: list[int]
    k_min: int | None
    delta: float | None
    eps_day: float | None
    eps_30_days: float | None
    windows: int | None = Field(description="Taken; the others were not.")
    refused: int | None
    repeated: int | None
    too_late: int | None
    suppressed: int | None = Field(description="Windows of groups of fewer than k_min devices.")
    out_of_budget: int | None = Field(description="Sums that were not published because the day's budget was spent.")
    budgets: list[BudgetView] = Field(description="Newest first.")


class MixerReports(Schema):
    mixers: list[MixerReport]


class OperationsPoint(Schema):
    """Counts of 5 minutes, an hour or a day. From twins, which name the device: pseudonymous at best."""

    at: float
    version: str
    device_class: str
    region: str
    devices: int
    requests: int
    errors: int
    slow: int = Field(description="Of the requests: slower than the release promises.")
    inferences: int
    cpu_ms: float
    energy_j: float | None = Field(description="null: no device has a sensor.")
    bytes_sent: float
    bytes_received: float
    latency_ms_p95_max: float | None = Field(description="Of the slowest device.")
    cpu_percent_mean: float | None
    cpu_percent_max: float | None


class OperationsView(Schema):
    model: str
    step: Literal["5m", "hour", "day"]
    since: float
    until: float
    points: list[OperationsPoint] = Field(description="Oldest first.")


class HeadroomView(Schema):
    """What one device class has left in its busiest hour."""

    device_class: str
    at: float | None = Field(description="When the hour began in which an average device was busiest.")
    cpu_percent: float | None = Field(description="Of an average device in it.")
    cpu_percent_max: float | None = Field(description="Of the busiest device in it.")
    devices: int
    requests_peak: float = Field(description="Requests a second of all devices, in the hour with most.")
    requests_peak_at: float | None
    factor: float | None = Field(description="How much more an average device could do before its processor is full.")


class HeadroomPage(Schema):
    since: float
    until: float
    classes: list[HeadroomView] = Field(description="The least headroom first.")


class KindTermsView(Schema):
    kind: Kind
    what: str
    sigma_units: float
    sigma_devices: float = Field(description="Standard deviation of the noise on every number, in devices.")
    rho: float = Field(description="Of each hour.")


class ReleaseTermsView(Schema):
    model: str
    version: str
    allow: list[Kind] = Field(description="What may leave a device; empty: nothing.")


class MixerTermsView(Schema):
    mixer: str
    seen_at: float
    key: str
    cohorts: list[int]
    k_min: int
    delta: float
    eps_day: float
    eps_30_days: float
    suppressed: int
    out_of_budget: int
    problems: list[str] = Field(description="Where it does less than what is promised here.")


class StatementView(Schema):
    """The privacy statement, with the parameters in force."""

    fleet: str
    made_at: float
    units: int
    window_bytes: int
    cohorts: int
    k_min: int
    rho_day: float
    releases_a_day: int
    delta: float
    eps_day: float
    eps_30_days: float
    kinds: list[KindTermsView]
    releases: list[ReleaseTermsView]
    mixers: list[MixerTermsView]
    operational: list[str] = Field(description="What devices send under their own names.")
    never_sent: list[str]
    limits: list[str]
    markdown: str = Field(description="All of it for people.")
