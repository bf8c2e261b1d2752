"""Which agent releases the offline keys vouch for, as far as this device can verify.

It goes by a copy of what the running agent trusts, so neither disturbs the other: two must not write one trust state.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from muster_agent.core.trust import Target
from muster_agent.install.wheel_set import UpgradeRefused
from muster_agent.io.trust import TrustClient
from muster_agent.io.trust_state import PREVIOUS_FILE, STATE_FILE, VERSIONED
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET
from muster_shared.errors import TrustError, WireError
from muster_shared.messages import MESSAGE_BYTES_MAX, TrustFiles

FILES_MAX = 1024


def signed_targets(
    trust_folder: Path, bootstrap: Path, offered: Path | None, clock: Callable[[], datetime]
) -> Mapping[str, Target]:
    """Return every target that is verified now.

    Args:
        trust_folder: The agent's, which is only read.
        bootstrap: The TUF root that the device was enrolled with.
        offered: A folder of metadata that came with the wheels, untrusted: N.root.json, timestamp.json, and so on,
            with the assignment's keys in keys/assignment.json. None: what the agent has verified is all.

    Raises:
        UpgradeRefused: it does not verify, has expired, or is older than what the agent has seen.
    """
    with tempfile.TemporaryDirectory(prefix="muster-trust-") as scratch:
        try:
            for name in (STATE_FILE, PREVIOUS_FILE):
                if (trust_folder / name).exists():
                    shutil.copyfile(trust_folder / name, Path(scratch, name))
            client = TrustClient(Path(scratch), bootstrap.read_bytes(), clock)
            for files in _read(offered) if offered is not None else ():
                client.offer(files)
            return client.refresh().targets
        except (TrustError, WireError) as error:
            raise UpgradeRefused(f"the signatures do not hold: {error}") from error
        except OSError as error:
            raise UpgradeRefused(f"{error.filename} cannot be read: {error.strerror}") from error


def _read(folder: Path) -> list[TrustFiles]:
    """Return the metadata files in `folder`, one message for each role. Raises OSError, WireError."""
    roles: dict[str, dict[str, str]] = {}
    paths = sorted(folder.glob("*.json"))
    if len(paths) > FILES_MAX:
        raise WireError(f"{folder} has {len(paths)} files; {FILES_MAX} are the most")
    for path in [*paths, folder / KEYS_TARGET]:
        versioned = VERSIONED.fullmatch(path.name)
        if path == folder / KEYS_TARGET:
            role, name = KEYS_ROLE, KEYS_TARGET
        else:
            role, name = (versioned[2] if versioned is not None else path.stem), path.name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            raw = file.read(MESSAGE_BYTES_MAX + 1)
        roles.setdefault(role, {})[name] = raw.decode("utf-8", "replace")
    return [TrustFiles(role=role, files=files) for role, files in roles.items()]
