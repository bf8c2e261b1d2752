"""How the daemon puts the anonymous metrics together: clock, trust, link and table become what `metrics/` asks for.

It decides nothing and owns no thread.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from muster_agent.config import AgentConfig
from muster_agent.core.periods import BELIEVED_SINCE_S
from muster_agent.core.trust import TrustView
from muster_agent.metrics.journal import FILE, MetricsJournal
from muster_agent.metrics.port import Release
from muster_agent.metrics.sending import Line, Sending, waits_for
from muster_agent.metrics.showing import Showing, showing
from muster_agent.serving.table import ServingTable
from muster_shared.metrics import metrics_time

if TYPE_CHECKING:  # A device without a ring does not load it.
    from muster_agent.metrics.outliers import OutlierRing


def metrics_journal(config: AgentConfig) -> MetricsJournal:
    return MetricsJournal(config.data_dir / FILE)


def outliers(config: AgentConfig) -> "OutlierRing | None":
    """Return the ring that the configuration asks for."""
    wanted = config.metrics.outliers
    if wanted is None:
        return None
    from muster_agent.metrics.outliers import FOLDER, OutlierRing  # It loads the cryptography.

    return OutlierRing(config.data_dir / FOLDER, wanted.public_key, count=wanted.count, mib=wanted.mib)


def sending(
    config: AgentConfig,
    journal: MetricsJournal,
    line: Line,
    view: Callable[[], TrustView | None],
    granted_at: float | None,
) -> Sending:
    """Return what sends the windows of this device.

    Args:
        view: What was verified last.
        granted_at: When the device's certificate was granted: a clock that says less is wrong. None: unknown.
    """
    chosen = config.metrics
    known_since = max(BELIEVED_SINCE_S, granted_at or 0.0)

    def mixers() -> Mapping[str, bytes]:
        trusted = view()
        return {} if trusted is None else trusted.keys.mixers

    def clock() -> float | None:
        wall = time.time()
        return None if wall < known_since else metrics_time(wall, chosen.clock_speed, chosen.clock_since)

    return Sending(
        fleet=config.fleet,
        place=config.metrics_place,
        journal=journal,
        line=line,
        mixers=mixers,
        clock=clock,
        random=random.SystemRandom(),
        mixer=chosen.mixer,
        spread_s=chosen.spread_s,
    )


def windows(config: AgentConfig, sender: Sending, line: Line, table: ServingTable) -> Showing:
    """Return what would leave next. It may wait for the disk; from any thread."""

    def labels(release: Release) -> Sequence[str]:
        place = table.places().get(release.model)
        return () if place is None or place.version != release.version else place.served.manifest.labels

    return sender.inspect(
        lambda book, due, at: showing(
            book,
            due,
            at,
            fleet=config.fleet,
            mixer=sender.mixer,
            waits_for=waits_for(sender, line),
            random=random.SystemRandom(),
            labels=labels,
            spread_s=config.metrics.spread_s,
        )
    )
