"""The error tree that agent and controller share.

    MusterError
    ├── WireError            bytes from outside that do not parse, or are too large
    ├── TrustError           a signature, a counter, a date or a target that does not hold
    │   ├── MetadataExpired
    │   ├── MetadataReplayed
    │   ├── MetadataUntrusted
    │   └── AssignmentForged
    ├── BundleError          a release that is broken in itself
    │   ├── ManifestInvalid
    │   └── FileTampered
    └── LinkError            (in `link`) the way to the broker

One class for each thing that a caller does differently; facts are attributes; the message says what to do next.
"""


class MusterError(Exception):
    """Anything that Muster refuses or cannot do."""


class WireError(MusterError):
    """Bytes from outside that do not parse, or are too large. They are counted and dropped, never obeyed."""


class TrustError(MusterError):
    """Something that was not said by whoever has the right to say it."""


class MetadataExpired(TrustError):
    """TUF metadata past its date: a frozen controller, or a device whose clock is wrong."""


class MetadataReplayed(TrustError):
    """TUF metadata older than what was already seen."""


class MetadataUntrusted(TrustError):
    """TUF metadata without the signatures that its role needs."""


class AssignmentForged(TrustError):
    """An assignment that no trusted assignment key has signed."""


class BundleError(MusterError):
    """A release that is broken in itself."""


class ManifestInvalid(BundleError):
    """A `bundle.json` that does not say what it must."""


class FileTampered(BundleError):
    """Bytes that are not those which the manifest names."""

    def __init__(self, name: str, expected_sha256: str, actual_sha256: str) -> None:
        super().__init__(f"{name} should hash to {expected_sha256[:12]}… but is {actual_sha256[:12]}…; fetch it again")
        self.name = name
        self.expected_sha256 = expected_sha256
        self.actual_sha256 = actual_sha256
