"""Every page and list that is asked. A new one is a line here."""

from dataclasses import dataclass
from typing import Final

DEVICES: Final = "SELECT id, online, boot, seen_at, twin FROM device ORDER BY id LIMIT 100"
EVENTS: Final = "SELECT ordinal, taken_at, body FROM event ORDER BY ordinal DESC LIMIT 100"
NOTES: Final = "SELECT ordinal, at, what, subject, detail, actor FROM note ORDER BY ordinal DESC LIMIT 100"
AUDIT: Final = "SELECT * FROM audit ORDER BY ordinal DESC LIMIT 100"
IDENTITIES: Final = "SELECT * FROM identity ORDER BY device LIMIT 100"
ROLLOUTS: Final = "SELECT * FROM rollout ORDER BY created_at DESC LIMIT 100"
API: Final = "/api/v1"


@dataclass(frozen=True)
class Asked:
    """One address; `bare`: the query of the same rows, to compare with, or empty."""

    path: str
    bare: str = ""
    selector: str = ""
    """Of an operator who sees a part of the fleet; empty: somebody who sees all."""


ASKED: Final = (
    # Pages.
    Asked("/"),
    Asked("/devices", DEVICES),
    Asked("/devices?sort=-seen"),
    Asked("/devices?sort=standing&state=current"),
    Asked("/devices?selector=site%20in%20(site-1,site-2),line!%3D3"),
    Asked("/devices?selector=serial"),
    Asked("/devices?q=9999"),
    Asked("/devices?silent=86400"),
    Asked("/devices?cursor=device-090000"),
    Asked("/devices", selector="line=3"),
    Asked("/complete/selector?selector=serial%3D"),
    Asked("/labels"),
    Asked("/labels?by=site&and=line"),
    Asked("/devices/device-000003"),
    Asked("/rollouts", ROLLOUTS),
    Asked("/rollouts/running-0"),
    Asked("/rollouts/running-0?arm=waiting&q=9999"),
    Asked("/rollouts/running-0?waiting=70000&cursor=10000"),
    Asked("/rollouts/running-0", selector="line=3"),
    Asked("/rollouts/running-0/report"),
    Asked("/rollouts/large-0"),
    Asked("/models"),
    Asked("/alerts"),
    Asked("/audit", AUDIT),
    Asked("/keys"),
    Asked("/settings"),
    Asked("/metrics"),
    # Lists of the API.
    Asked(f"{API}/status"),
    Asked(f"{API}/devices", DEVICES),
    Asked(f"{API}/devices?sort=seen"),
    Asked(f"{API}/devices", selector="line=3"),
    Asked(f"{API}/status", selector="line=3"),
    Asked(f"{API}/devices/device-000003"),
    Asked(f"{API}/labels"),
    Asked(f"{API}/events", EVENTS),
    Asked(f"{API}/events?device=device-000003"),
    Asked(f"{API}/events", selector="line=3"),
    Asked(f"{API}/notes", NOTES),
    Asked(f"{API}/identities", IDENTITIES),
    Asked(f"{API}/identities?state=waiting"),
    Asked(f"{API}/audit", AUDIT),
    Asked(f"{API}/rollouts", ROLLOUTS),
    Asked(f"{API}/rollouts/running-0"),
    Asked(f"{API}/rollouts/running-0/members"),
    Asked(f"{API}/rollouts/running-0/members?outcome=pending&cursor=80000"),
    Asked(f"{API}/rollouts/running-0/waiting"),
    Asked(f"{API}/rollouts/running-0/waiting?why=offline&cursor=60000", selector="line=3"),
    Asked(f"{API}/rollouts/running-0/evidence"),
    Asked(f"{API}/rollouts/running-0/report"),
    Asked(f"{API}/rollouts/large-0"),
    Asked(f"{API}/rollouts/large-0/members"),
    Asked(f"{API}/models"),
    Asked(f"{API}/alerts"),
    Asked(f"{API}/views"),
)
