"""The agent's part of the error tree.

MusterError
├── StoreError
│   ├── DiskFull          nothing was written; what serves goes on serving
│   └── StoreDamaged      a file that was whole is not any more
├── JournalFailed         state and reports were not saved: nothing may be done about them yet
├── ConfigInvalid         the configuration does not say what it must
├── AgentRunning          another agent has the data folder
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


class MetadataIncomplete(TrustError):
    """Some TUF file that the chain names has not arrived yet: nothing is wrong, wait for it."""


class CheckFailed(MetadataIncomplete):
    """The process that verifies did not answer. What was verified last stays; see its exit code, free some memory."""
