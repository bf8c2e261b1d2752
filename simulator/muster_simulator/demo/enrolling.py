"""How the demo's devices get their identity: as `muster-agent enrol` does, by the agent's own client.

A process for each of them would take longer than all the rest of the start; what is asked and checked is the same.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from muster_agent import __version__
from muster_agent.errors import EnrolmentRefused
from muster_agent.identity.client import enrol
from muster_agent.identity.folder import IdentityFolder
from muster_agent.identity.key_uri import FILE
from muster_agent.identity.keys import open_key
from muster_shared.enrolment import EnrolmentToken, Waiting
from muster_shared.ids import DeviceId

AT_ONCE = 4
BUSY_S = 0.25  # The device port answers one address 100 times at once, and then five times a second.
TIMEOUT_S = 300.0  # For the five hundred devices of the largest demo.


class Registrar:
    """Enrols devices at one controller with one token."""

    def __init__(self, device_url: str, token: EnrolmentToken) -> None:
        self._device_url = device_url
        self._token = token

    def enrol(self, device: DeviceId, folder: Path, device_class: str) -> IdentityFolder:
        """Make an identity key in `folder`, get the device's first certificate, and keep it there.

        Raises:
            IdentityError: as `muster_agent.identity.client.enrol`.
        """
        identity = IdentityFolder(folder)
        identity.make()
        key = open_key(FILE, identity, make=True)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                answer = enrol(
                    identity,
                    key,
                    controller_url=self._device_url,
                    token=self._token,
                    device=device,
                    device_class=device_class,
                    agent_version=__version__,
                )
            except EnrolmentRefused as error:
                if error.code != "busy" or time.monotonic() > deadline:
                    raise
                time.sleep(BUSY_S)
                continue
            if isinstance(answer, Waiting):  # Nobody has to accept what comes with the demo's token.
                raise EnrolmentRefused("device", answer.reason)
            return identity

    def enrol_all(self, devices: Sequence[tuple[DeviceId, Path, str]]) -> None:
        """Enrol several: device, folder and class of each. Raises IdentityError, the first one."""
        with ThreadPoolExecutor(AT_ONCE, "enrolling") as asking:
            for asked in [asking.submit(self.enrol, *each) for each in devices]:
                asked.result()
