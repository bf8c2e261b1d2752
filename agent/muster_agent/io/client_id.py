"""What the agent is called at the broker: `muster-<fleet>-<device>-<16 hex>`, where nobody can guess the end.

Not every broker binds client ids to certificates (NATS does not), and whoever knows one can push its connection out.
The word is kept, so that a restarted agent takes the place of the one before and not a place beside it.
"""

import re
import secrets
from pathlib import Path

import structlog

from muster_agent.io import durable
from muster_shared.ids import DeviceId, FleetId

FILE = "client-id"
BYTES = 8
_WORD = re.compile(rf"[0-9a-f]{{{2 * BYTES}}}\n?")

log = structlog.get_logger()


def client_id(data_dir: Path, fleet: FleetId, device: DeviceId) -> str:
    """Return it; the first time it is made, and kept in `data_dir` (0600).

    A disk that cannot keep it costs the next start its name, nothing else. NATS takes no dots, and there are none.
    """
    return client_id_of(fleet, device, _word(data_dir / FILE))


def client_id_of(fleet: FleetId, device: DeviceId, word: str) -> str:
    """Return it with its end: `BYTES` random ones, as hex."""
    return f"muster-{fleet}-{device}-{word}"


def _word(path: Path) -> str:
    try:
        with path.open("r", encoding="ascii") as file:
            found = file.read(64)
        if _WORD.fullmatch(found):
            return found.strip()
    except (OSError, UnicodeDecodeError):
        pass  # There is none yet, or none that is worth keeping.
    word = secrets.token_hex(BYTES)
    try:
        durable.replace(path, f"{word}\n".encode(), 0o600)
    except OSError as error:  # A full disk is no reason not to come in.
        log.warning("client_id_not_kept", error=str(error), remedy="free some space in the data folder")
    return word
