"""How the fleet stood over time, as plots: the versions of each model, and devices by how they stand. Pure."""

from collections.abc import Sequence

from muster_controller.core.samples import FleetSample
from muster_controller.web.plots import VERSION_TONES, Plot, Series, Shape, Tone

VERSIONS_DRAWN = 6
OLDER = "others"

Looks = Sequence[tuple[float, FleetSample]]
"""(Unix seconds, sample), in order of time; the last is now."""

_STANDINGS = (("failing", Tone.BAD), ("behind", Tone.WAIT), ("updating", Tone.BUSY))


def version_plot(model: str, looks: Looks) -> Plot:
    """Return how many devices served each version of a model; the commonest by name, the rest together."""
    counts = [(at, look.versions.get(model, {})) for at, look in looks]
    most = {name: max(found.get(name, 0) for _, found in counts) for name in {n for _, found in counts for n in found}}
    drawn = sorted(sorted(most, key=lambda name: (-most[name], name))[:VERSIONS_DRAWN], key=_order)
    series = [
        Series(name, [(at, float(found.get(name, 0))) for at, found in counts], tone=tone, shape=Shape.AREA)
        for name, tone in zip(drawn, VERSION_TONES, strict=False)
    ]
    if len(most) > len(drawn):
        rest = [(at, float(sum(n for name, n in found.items() if name not in drawn))) for at, found in counts]
        series.append(Series(OLDER, rest, tone=Tone.IDLE, shape=Shape.AREA))
    newest = counts[-1][1] if counts else {}
    words = ", ".join(f"{newest[name]} on {name}" for name in drawn if newest.get(name))
    return Plot(
        id=f"versions-{model}",
        title=f"{model}: devices by version",
        words=f"Devices by version of {model}; now {words or 'none serves it'}.",
        series=series if len(counts) > 1 else (),
        low=0.0,
        height=160,
    )


def standing_plot(looks: Looks) -> Plot:
    """Return how many devices were offline, and how many did not stand as they should."""
    rows = [("offline", Tone.V5, [(at, float(look.devices - look.online)) for at, look in looks])]
    rows += [
        (name, tone, [(at, float(look.standings.get(name, 0))) for at, look in looks]) for name, tone in _STANDINGS
    ]
    newest = looks[-1][1] if looks else FleetSample(0, 0, {}, {})
    said = ", ".join(f"{int(points[-1][1])} {name}" for name, _, points in rows if points)
    return Plot(
        id="standing-over-time",
        title="Devices that do not stand as they should",
        words=f"Of {newest.devices} devices {said or 'none is known'} now.",
        series=[Series(name, points, tone=tone) for name, tone, points in rows] if len(looks) > 1 else (),
        low=0.0,
        height=160,
    )


def _order(name: str) -> tuple[list[int], str]:
    core, _, word = name.partition("-")
    return [int(each) for each in core.split(".") if each.isdecimal()], word or "~"  # 2.0.0-rc1 is before 2.0.0.
