"""The privacy statement of this fleet: what its releases allow and its mixers say, gathered."""

from muster_controller.core.metrics.statement import ReleaseTerms, Statement, statement
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.ports import Registry
from muster_shared.ids import FleetId


def stated(fleet: FleetId, now: float, registry: Registry, store: MetricsStore) -> Statement:
    """Return the statement as of `now`. Raises LedgerUnavailable."""
    releases = []
    for each in registry.releases():
        manifest = registry.manifest(each.bundle_sha256)
        if manifest is not None:
            releases.append(ReleaseTerms(each.model, each.version, tuple(sorted(manifest.metrics.allow))))
    mixers = [(each.seen_at, each.state) for each in store.mixers() if each.state is not None]
    return statement(fleet, now, releases, mixers)
