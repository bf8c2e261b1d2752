"""What the templates show, ready to be shown: words, numbers and geometry. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from urllib.parse import urlencode

from muster_controller.api.schemas import ModelView, Status
from muster_controller.api.standing import Standing
from muster_controller.web.charts import Segment, segments

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
TONES = 6  # Colours of versions; they repeat.


@dataclass(frozen=True)
class Tile:
    label: str
    count: int
    hint: str
    tone: str
    href: str


@dataclass(frozen=True)
class ModelBar:
    model: str
    baseline: str | None
    segments: tuple[Segment, ...]
    total: int


def tiles(status: Status) -> tuple[Tile, ...]:
    """Return the fleet at a glance."""
    counts = status.standings

    def tile(label: str, standing: Standing, hint: str, tone: str) -> Tile:
        return Tile(label, counts.get(standing, 0), hint, tone, "/devices?" + urlencode({"state": standing.value}))

    return (
        Tile("online", status.online, _online(status), "calm", "/devices?online=true"),
        tile("current", Standing.CURRENT, "run what they should", "good"),
        tile("updating", Standing.UPDATING, "fetch or test now", "busy"),
        tile("behind", Standing.BEHIND, "have not begun", "wait"),
        tile("failing", Standing.FAILING, "could not change", "bad"),
    )


def _online(status: Status) -> str:
    offline = status.devices - status.online
    return f"of {status.devices:,}" + (f"; {offline:,} offline" if offline else "")


def model_bars(models: Sequence[ModelView]) -> tuple[ModelBar, ...]:
    """Return the versions that serve, oldest first, for each model that serves anywhere."""
    bars = []
    for model in models:
        known = [version for version in model.versions if version in model.devices]
        gone = sorted(version for version in model.devices if version not in model.versions)
        counts = [(version, model.devices[version]) for version in (*gone, *known)]
        if counts:
            bars.append(ModelBar(model.name, model.baseline, segments(counts), sum(count for _, count in counts)))
    return tuple(bars)


# -- words ---------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return an E as people read it: 0.042, 1.7, 260."""
    if value >= 1e6 and isfinite(value):
        digits, power = f"{value:.1e}".split("e")
        return f"{digits} × 10{str(int(power)).translate(_RAISED)}"
    if value >= 100:
        return f"{value:,.0f}" if value < 1e4 else f"{float(f'{value:.2g}'):,.0f}"
    return f"{value:.2g}"


HOST = {
    "cpu_percent": ("processor", "{:.0f} %"),
    "memory_percent": ("memory", "{:.0f} %"),
    "disk_percent": ("disk", "{:.0f} %"),
    "temperature_c": ("temperature", "{:.0f} °C"),
    "agent_rss_mb": ("agent's memory", "{:.0f} MB"),
    "throttled": ("held back by heat or power", "{}"),
    "pressure_cpu_percent": ("waited for the processor", "{:.1f} %"),
    "pressure_memory_percent": ("waited for memory", "{:.1f} %"),
    "pressure_io_percent": ("waited for disks", "{:.1f} %"),
    "steal_percent": ("taken by the hypervisor", "{:.1f} %"),
    "battery_percent": ("battery", "{:.0f} %"),
    "energy_j": ("energy since start", "{:,.0f} J"),
    "net_sent_mb": ("sent", "{:,.1f} MB"),
    "net_received_mb": ("received", "{:,.1f} MB"),
}
"""Of `HostTelemetry`: what it is called, and how it is written. What is not here is written as it comes."""


def host_rows(host: Mapping[str, object]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what a host tells of itself, ready to be read, and the names of what it does not tell."""
    told: list[tuple[str, str]] = []
    untold: list[str] = []
    for key, value in host.items():
        name, form = HOST.get(key, (words(key), "{}"))
        if value is None:
            untold.append("running for" if key == "uptime_s" else name)
        elif key == "uptime_s" and isinstance(value, int | float):
            told.append(("running for", span(value)))
        elif isinstance(value, bool):
            told.append((name, "yes" if value else "no"))
        else:
            told.append((name, form.format(value)))
    return told, untold


def day_time(at: float) -> str:
    """Return a moment of a chart over days: `22 Nov 18:00`, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%-d %b %H:%M}"


def span(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 5 h, 3 days."""
    for size, unit in ((172_800, "days"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(at: float, now: float) -> str:
    """Return how long ago `at` was, or how long it is until then."""
    if at <= 0:
        return "never"
    seconds = abs(now - at)
    if seconds < 5:
        return "just now"
    units = ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h"))
    size, unit = next(((size, unit) for limit, size, unit in units if seconds < limit), (86_400, "d"))
    return f"in {seconds / size:.0f} {unit}" if at > now else f"{seconds / size:.0f} {unit} ago"


def clock_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def stamp(at: float) -> str:
    """Return the `datetime` attribute of a <time>."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def size(count: float) -> str:
    """Return bytes in decimal units."""
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count / limit * 1e3:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def percent(share: float) -> str:
    return f"{share:.0%}"


def words(text: str) -> str:
    """Return an event name as words."""
    return text.replace("_", " ")


def query(current: Mapping[str, str], **changes: str | None) -> str:
    """Return the query string of `current` with `changes`; None takes a field out."""
    merged = {**current, **{key: value for key, value in changes.items() if value is not None}}
    kept = {key: value for key, value in merged.items() if value and changes.get(key, value) is not None}
    return "?" + urlencode(kept)
