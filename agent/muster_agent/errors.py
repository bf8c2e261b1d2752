"""The agent's part of the error tree.

MusterError
├── StoreError
│   ├── DiskFull          nothing was written; what serves goes on serving
│   └── StoreDamaged      a file that was whole is not any more
├── JournalFailed         state and reports were not saved: nothing may be done about them yet
├── ConfigInvalid         the configuration does not say what it must
├── AgentRunning          another agent has the data folder
├── IdentityError         (who the device is)
│   ├── KeyUnusable           the identity key cannot be made, read or signed with
│   ├── IdentityDamaged       the folder of the identity is not as it was written
│   ├── NotEnrolled           there is no certificate yet
│   ├── EnrolmentRefused      the controller says no, and why
│   ├── EnrolmentUnreachable  nobody answers at the device port: it is tried again
│   ├── ControllerUntrusted   somebody answers there who is not the controller of this device
│   └── GrantUnusable         what was granted does not fit: nothing was changed
└── MetadataIncomplete    (a TrustError) some TUF file that the chain names has not arrived yet: wait
    └── CheckFailed       nothing could be verified: nothing is believed, and it is tried again
"""

from muster_shared.errors import MusterError, TrustError


class StoreError(MusterError):
    """The content store cannot do what it was asked."""


class DiskFull(StoreError):
    """No room for a chunk. Free some space; the update goes on from where it was."""


class StoreDamaged(StoreError):
    """A file that was whole is gone or changed."""


class JournalFailed(MusterError):
    """The journal cannot be read or written. What was decided is neither saved nor done; it is tried again."""


class ConfigInvalid(MusterError):
    """A configuration that does not say what it must; the message names the file and the field."""


class AgentRunning(MusterError):
    """Another agent works in this data folder. Stop it first, or give this one a folder of its own."""


class IdentityError(MusterError):
    """Something about who this device is."""


class KeyUnusable(IdentityError):
    """The identity key cannot be made, read or signed with; the message names the file or the token."""


class IdentityDamaged(IdentityError):
    """The folder of the identity is not as it was written. Enrol again with a new token."""


class NotEnrolled(IdentityError):
    """There is no certificate yet. Enrol with a token of the controller."""


class EnrolmentRefused(IdentityError):
    """The controller says no. `code` is one of those of `muster_shared.enrolment.Refused`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"the controller refused ({code}): {reason}")
        self.code = code
        self.reason = reason


class EnrolmentUnreachable(IdentityError):
    """Nobody answers at the device port, or not in its words. It is worth trying again."""


class ControllerUntrusted(IdentityError):
    """Somebody answers at the device port who is not the controller of this device. Nothing was told to them."""


class GrantUnusable(IdentityError):
    """What the controller granted does not fit this device. Nothing was changed."""


class MetadataIncomplete(TrustError):
    """Some TUF file that the chain names has not arrived yet: nothing is wrong, wait for it."""


class CheckFailed(MetadataIncomplete):
    """The process that verifies did not answer. What was verified last stays; see its exit code, free some memory."""
