"""What a fleet of a world looks like: classes, sites, rings, time zones, traffic. Drawn by the seed."""

from random import Random

from muster_simulator.fleet.device import Nature
from muster_simulator.hardware import CLASSES

SITES = tuple(f"s{number}" for number in range(12))
RINGS = ("a", "b", "c")
RING_SHARES = (0.1, 0.25, 0.65)
CLASS_SHARES = (0.45, 0.3, 0.15, 0.1)
"""Of `CLASSES`, in their order."""


def nature(random: Random) -> Nature:
    """Draw one device."""
    return Nature(
        hardware=random.choices(CLASSES, CLASS_SHARES)[0],
        labels=labels(random),
        utc_offset_s=random.choice((-8, -5, 0, 1, 2, 5, 9)) * 3600,
        requests_per_s=0.0 if random.random() < 0.05 else random.uniform(0.1, 0.5),
        latency_ms=random.uniform(8.0, 20.0),
        later_share=random.choice((0.0, 0.0, 0.2, 0.5)),
    )


def labels(random: Random) -> dict[str, str]:
    return {"site": random.choice(SITES), "ring": random.choices(RINGS, RING_SHARES)[0]}


def moved(random: Random, before: dict[str, str]) -> dict[str, str]:
    """Draw other labels: another site, or another ring."""
    if random.random() < 0.5:
        return {**before, "site": random.choice(SITES)}
    return {**before, "ring": random.choice(RINGS)}


def is_named(selector: str, labels: dict[str, str]) -> bool:
    """Return whether one of this world's own selectors names a device: by hand, not by the code that is watched."""
    for part in filter(None, (each.strip() for each in selector.split(";"))):
        key, _, values = part.partition("=")
        if labels.get(key) not in values.split("|"):
            return False
    return True


def written(selector: str) -> str:
    """Return such a selector in Kubernetes' grammar: `site=s0|s1;ring=a` is `site in (s0,s1),ring in (a)`."""
    parts = [each.partition("=") for each in selector.split(";") if each]
    return ",".join(f"{key} in ({values.replace('|', ',')})" for key, _, values in parts)
