"""The mixer's part of the error tree.

MusterError
└── MixerError
    ├── MixerConfigInvalid      an option that would weaken what is published about privacy, or means nothing
    ├── MixLedgerUnavailable    the disk refuses now; nothing of the transaction is there
    └── MixLedgerDamaged        the ledger is no ledger, or a newer mixer's: what was spent is not known
"""

from muster_shared.errors import MusterError


class MixerError(MusterError):
    """Anything that a mixer refuses or cannot do."""


class MixerConfigInvalid(MixerError):
    """An option that would weaken what is published about privacy, or that means nothing."""


class MixLedgerUnavailable(MixerError):
    """The ledger cannot be read or written now. What was to be written is tried again."""


class MixLedgerDamaged(MixerError):
    """The ledger does not say what was spent: it is broken, or was written by a newer version."""
