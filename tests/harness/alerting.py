"""What alerts look at in a controller of which only the database is there: no mixers, certificates or keys."""

from muster_controller.alerts.looking import Sources
from muster_controller.alerts.sources import Content
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.objective_store import ObjectiveStore


def sources(ledger: SqlLedger, objectives: ObjectiveStore, content: Content) -> Sources:
    """Return what is in the database, behind a broker that is connected."""
    return Sources(
        committed=ledger.committed,
        is_connected=lambda: True,
        objectives=objectives,
        drift=content.drift,
        compared=content.compared,
        peaks=content.peaks,
        mixers=lambda: (),
        certificates=lambda: (),
        keys=lambda: (),
    )
