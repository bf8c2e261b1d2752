"""Identity's part of the error tree.

MusterError
└── IdentityError
    ├── CaInvalid             files of a CA that are damaged, do not fit each other, or are no CA
    ├── RootKeyAway           the root's private key is needed and is not here
    ├── RequestInvalid        a certificate request that nobody signed, or whose keys are of no use here
    └── EnrolmentConflict     what an operator orders does not fit how the device stands

`IdentityUnknown` and `MixerUnknown` are NotFound.
"""

from pathlib import Path

from muster_controller.errors import NotFound
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId


class IdentityError(MusterError):
    """Anything that identity refuses or cannot do."""


class CaInvalid(IdentityError):
    def __init__(self, where: Path | str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class RootKeyAway(IdentityError):
    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the root's private key is not in {folder}; bring the folder that it was taken to and name it: "
            "`muster ca renew --root-key FOLDER/root.key`"
        )
        self.folder = folder


class RequestInvalid(IdentityError):
    """A request for a certificate that proves nothing. The message is sent to whoever asked."""


class EnrolmentConflict(IdentityError):
    """An order that does not fit how a token or an identity stands."""


class IdentityUnknown(NotFound):
    def __init__(self, device: DeviceId) -> None:
        super().__init__("identity", device, "`muster device identities` shows what there is")


class MixerUnknown(NotFound):
    def __init__(self, mixer: str) -> None:
        super().__init__("mixer", mixer)
