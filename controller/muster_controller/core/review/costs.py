"""What each model cost in a week: processor time, bytes, energy where sensors tell; and a thousand inferences. Pure."""

from collections.abc import Iterable, Sequence

from muster_controller.core.metrics.series import HOST, Series
from muster_controller.core.review.facts import Cost

HOUR_MS = 3.6e6
KWH_J = 3.6e6


def costs(hours: Iterable[Series]) -> list[Cost]:
    """Return the cost of each model, the one with most processor time first."""
    models: dict[str, list[Series]] = {}
    for each in hours:
        if each.group.model != HOST:
            models.setdefault(each.group.model, []).append(each)
    found = [_cost(model, points) for model, points in models.items()]
    return sorted(found, key=lambda each: (-each.cpu_hours, each.model))


def _cost(model: str, points: Sequence[Series]) -> Cost:
    inferences = sum(each.inferences for each in points)
    cpu_ms = sum(each.cpu_ms for each in points)
    moved = sum(each.bytes_sent + each.bytes_received for each in points)
    told = [(each.energy_j, each.inferences) for each in points if each.energy_j is not None]
    energy_j = sum(energy for energy, _ in told) if told else None
    # Of the points that tell energy only: others' inferences would make it look cheap.
    measured = sum(count for _, count in told)
    return Cost(
        model=model,
        requests=sum(each.requests for each in points),
        inferences=inferences,
        cpu_hours=cpu_ms / HOUR_MS,
        energy_kwh=None if energy_j is None else energy_j / KWH_J,
        bytes_sent=sum(each.bytes_sent for each in points),
        bytes_received=sum(each.bytes_received for each in points),
        cpu_s_per_1000=cpu_ms / inferences if inferences else None,  # ms each is s for a thousand.
        energy_j_per_1000=1000 * energy_j / measured if energy_j is not None and measured else None,
        bytes_per_1000=1000 * moved / inferences if inferences else None,
    )
