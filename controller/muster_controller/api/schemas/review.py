"""Weekly reviews. The same shape is kept, told to receivers and said here; a test holds it against the core's."""

from pydantic import Field

from muster_controller.api.schemas.base import Next, Schema


class SpanView(Schema):
    value: float
    low: float | None = Field(description="Of the 95 % interval; null: not known.")
    high: float | None


class RegressionView(Schema):
    measure: str = Field(description="accuracy, failures, latency (p95, ms) or slow (share over the objective).")
    model: str
    dimension: str = Field(description="all, class, device_class or region.")
    name: str
    before: SpanView
    after: SpanView
    worse: float = Field(description="A difference of shares; of latency the factor minus 1.")
    p: float | None = Field(description="For all that were looked at; null: by intervals or counts.")
    hidden: bool = Field(description="The average got better, or no worse.")
    versions: tuple[str, str] = Field(description="The most used release of the week before, and of this one.")


class SuspectView(Schema):
    model: str
    version: str
    device_class: str
    region: str
    hours: int
    correlation: float = Field(description="Spearman's.")
    p: float
    odd_share: float
    error_share: float


class RoomView(Schema):
    device_class: str
    devices: int
    busiest_at: float | None
    cpu_percent: float | None
    cpu_percent_max: float | None
    requests_per_s_peak: float
    factor: float | None = Field(description="How much more an average device could do; null: unknown.")


class ComingView(Schema):
    kind: str = Field(description="trust, ca, certificates, rollout or behind.")
    name: str
    text: str
    at: float | None


class CostView(Schema):
    model: str
    requests: int
    inferences: int
    cpu_hours: float
    energy_kwh: float | None = Field(description="Of devices with a sensor; null: unknown, never 0.")
    bytes_sent: float
    bytes_received: float
    cpu_s_per_1000: float | None
    energy_j_per_1000: float | None
    bytes_per_1000: float | None


class ReviewView(Schema):
    week: str = Field(description="ISO: 2026-W47.")
    fleet: str
    begin: float
    end: float
    devices: int
    regressions: tuple[RegressionView, ...]
    suspects: tuple[SuspectView, ...] = Field(description="Cells in which odd inputs and errors rise together.")
    rooms: tuple[RoomView, ...] = Field(description="Headroom at the busiest hour, by device class.")
    coming: tuple[ComingView, ...]
    costs: tuple[CostView, ...]
    left_out: int
    markdown: str = Field(description="All of it, as it is mailed.")


class ReviewEntry(Schema):
    week: str
    made_at: float


class ReviewPage(Schema):
    reviews: list[ReviewEntry] = Field(description="The newest first.")
    next: Next
