"""`ports.Registry` over the TUF repository and the blob store: which releases there are, and their bytes.

What is signed is the repository's to judge; what a manifest names is indexed here whenever the repository changed, so
that a device's want costs one look-up. Reading is safe from any thread; publishing is serialised.
"""

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from muster_controller.errors import NotFound
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.errors import BlobMismatch, BlobMissing, MetadataRefused
from muster_controller.registry.metadata import release_role
from muster_controller.registry.tuf_repository import ReleaseChange, TufRepository
from muster_shared.assignment import Assignment
from muster_shared.bundle import BundleFile, Manifest, digest, parse_manifest
from muster_shared.call import Call
from muster_shared.errors import BundleError
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import ReleaseRef, TrustFiles

log = structlog.get_logger()


@dataclass(frozen=True)
class _Index:
    """What the current metadata names."""

    releases: Mapping[tuple[ModelName, str], ReleaseRef] = field(default_factory=dict)
    manifests: Mapping[Sha256, Manifest] = field(default_factory=dict)
    lengths: Mapping[Sha256, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """What publishing would do."""

    change: ReleaseChange
    manifest: Manifest | None
    """None: of a revocation or a renewal."""
    missing: tuple[BundleFile, ...]
    """Which have to be uploaded before."""


class Releases:
    """The published releases of one controller."""

    def __init__(self, repository: TufRepository, blobs: BlobStore) -> None:
        self.repository = repository
        self.blobs = blobs
        self._publishing = threading.Lock()
        self._index = _Index()
        self._reload()

    # -- what the fleet asks -----------------------------------------------------------------------------------------

    def trust_messages(self) -> Sequence[TrustFiles]:
        """Return the TUF metadata for the wire; nothing before an operator has brought any."""
        return self.repository.trust_messages() if self.repository.is_ready else ()

    def release(self, model: ModelName, version: str) -> ReleaseRef | None:
        return self._index.releases.get((model, version))

    def releases(self) -> Sequence[ReleaseRef]:
        """Return every release, by model and counter."""
        return sorted(self._index.releases.values(), key=lambda release: (release.model, release.release))

    def manifest(self, bundle: Sha256) -> Manifest | None:
        return self._index.manifests.get(bundle)

    def past_manifest(self, bundle: Sha256, length: int) -> Manifest | None:
        """Return the manifest of a release, revoked or not; None: its bytes are not here."""
        return self._index.manifests.get(bundle) or self._read_manifest(bundle, length)

    def sign_assignments(self, assignments: Sequence[Assignment]) -> list[bytes]:
        return self.repository.sign_assignments(assignments)

    def sign_call(self, call: Call) -> bytes:
        return self.repository.sign_call(call)

    def blob_length(self, sha256: Sha256) -> int | None:
        return self._index.lengths.get(sha256)

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes:
        return self.blobs.read_range(sha256, offset, length)

    # -- what operators bring ----------------------------------------------------------------------------------------

    def publish(self, model: ModelName, manifest: bytes | None, metadata: bytes, now: datetime) -> bool:
        """Take the next signed metadata of a model; return whether it is new. The caller republishes the trust.

        Args:
            manifest: The exact bytes of the `bundle.json` that is added; None to revoke or renew.

        Raises:
            NotFound: no operator has delegated the model.
            BlobMissing, BlobMismatch: a file that the manifest names was not uploaded before.
            ManifestInvalid, MetadataRefused, ThresholdNotMet, VersionConflict, RepositoryEmpty
        """
        with self._publishing:
            role = release_role(model)
            if role not in self.repository.roles():
                raise NotFound("model", model)
            if manifest is not None:
                self._take_manifest(role, model, manifest)
            changed = self.repository.accept_release(role, metadata, manifest, now)
            self._reload()
            return changed

    def check(self, model: ModelName, manifest: bytes | None, metadata: bytes, now: datetime) -> Checked:
        """Return what `publish` would do, without doing it: files may still be missing. Arguments, errors: its own."""
        role = release_role(model)
        if role not in self.repository.roles():
            raise NotFound("model", model)
        parsed = None if manifest is None else self._parse(role, model, manifest)
        change = self.repository.check_release(role, metadata, manifest, now)
        files = () if parsed is None else {file.sha256: file for file in parsed.files}.values()
        missing = tuple(file for file in files if not self.blobs.has(file.sha256))
        return Checked(change, parsed, missing)

    def accept_offline(
        self,
        root: bytes,
        targets: bytes,
        keys: bytes,
        now: datetime,
        between: Sequence[bytes] = (),
        releases: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Take the operator's root and targets; return whether anything is new. Arguments, errors: the repository's."""
        with self._publishing:
            changed = self.repository.accept_offline(root, targets, keys, now, between=between, releases=releases)
            self._reload()
            return changed

    def refresh(self, now: datetime) -> bool:
        """Sign what the online keys sign again when it is due; return whether the trust messages changed."""
        with self._publishing:
            return self.repository.is_ready and self.repository.refresh_online(now)

    def _parse(self, role: str, model: ModelName, raw: bytes) -> Manifest:
        parsed = parse_manifest(raw)
        if parsed.model != model:
            raise MetadataRefused(role, f"the bundle.json is of {parsed.model}")
        return parsed

    def _take_manifest(self, role: str, model: ModelName, raw: bytes) -> None:
        parsed = self._parse(role, model, raw)
        for file in parsed.files:
            length = self.blobs.length(file.sha256)
            if length != file.length:
                raise BlobMismatch(file.sha256, f"{file.path} should have {file.length} bytes and has {length}")
        self.blobs.put(io.BytesIO(raw), digest(raw), len(raw))

    def _reload(self) -> None:
        before = self._index
        releases: dict[tuple[ModelName, str], ReleaseRef] = {}
        manifests: dict[Sha256, Manifest] = {}
        lengths: dict[Sha256, int] = {}
        for target in self.repository.releases():
            manifest = before.manifests.get(target.sha256) or self._read_manifest(target.sha256, target.length)
            if manifest is None:
                continue
            ref = ReleaseRef(
                model=manifest.model,
                version=manifest.version,
                release=target.release,
                bundle_sha256=target.sha256,
                bundle_length=target.length,
            )
            releases[manifest.model, manifest.version] = ref
            manifests[target.sha256] = manifest
            lengths[target.sha256] = target.length
            lengths.update({file.sha256: file.length for file in manifest.files})
        self._index = _Index(releases, manifests, lengths)

    def _read_manifest(self, sha256: Sha256, length: int) -> Manifest | None:
        """Return a manifest from the store; a release without its bytes is not offered, and said once a start."""
        try:
            raw = self.blobs.read_range(sha256, 0, length)
            if digest(raw) != sha256:
                raise BlobMismatch(sha256, "it was damaged on this disk")
            return parse_manifest(raw)
        except (BlobMissing, BlobMismatch, BundleError) as error:
            log.warning("release_unreadable", bundle=sha256, error=str(error))
            return None
