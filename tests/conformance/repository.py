"""A TUF repository that can be told to misbehave, and a server on the loopback that counts what is asked of it.

python-tuf makes and signs the metadata. Nothing is served before `publish` or `put`.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=30)


@dataclass
class Repository:
    """Documents as they are to be, `served` as they were published, and the keys of each role."""

    hashes: bool = False
    """Whether snapshot and timestamp say lengths and hashes, not versions alone."""
    consistent: bool = True
    signers: dict[str, list[CryptoSigner]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    delegated: dict[str, Targets] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Root(expires=LATER, consistent_snapshot=self.consistent)
        self.timestamp, self.snapshot, self.targets = (
            Timestamp(expires=LATER),
            Snapshot(expires=LATER),
            Targets(expires=LATER),
        )
        for role in sorted(TOP_LEVEL_ROLE_NAMES):
            self.add_key(role)
        self.publish_root(bump=False)
        self.publish(bump=False)

    # -- keys --------------------------------------------------------------------------------------------------------

    def add_key(self, role: str) -> CryptoSigner:
        signer = CryptoSigner.generate_ed25519()
        self.root.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def rotate(self, role: str) -> None:
        """Replace every key of `role` by one; the next root says so."""
        for signer in self.signers.pop(role, []):
            self.root.revoke_key(signer.public_key.keyid, role)
        self.add_key(role)

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish_root(self, *, bump: bool = True, also: list[CryptoSigner] | None = None) -> None:
        """Publish the next root, signed by its own keys and by those that `also` are to sign: the last root's."""
        if bump:
            self.root.version += 1
        self.served[f"{self.root.version}.root.json"] = self._signed(self.root, [*self.signers["root"], *(also or [])])

    def publish(self, *, bump: bool = True, targets: bool = True, snapshot: bool = True) -> None:
        """Publish targets, snapshot and timestamp, each naming the last; without one of them as it was."""
        if targets:
            self.targets.version += bump
            self.put("targets", self.targets)
        for role, document in self.delegated.items():
            self.put(role, document)
        if snapshot:
            self.snapshot.version += bump
            self.put("snapshot", self.snapshot)
        self.timestamp.version += bump
        self.put("timestamp", self.timestamp)

    def put(
        self, role: str, document: Targets | Snapshot | Timestamp, signers: list[CryptoSigner] | None = None
    ) -> None:
        """Sign and serve one document, and have the next one name it."""
        raw = self._signed(document, self.signers[role] if signers is None else signers)
        name = f"{role}.json" if role == "timestamp" or not self.consistent else f"{document.version}.{role}.json"
        self.served[name] = raw
        meta = MetaFile.from_data(document.version, raw, ["sha256"]) if self.hashes else MetaFile(document.version)
        if role == "snapshot":
            self.timestamp.snapshot_meta = meta
        elif role != "timestamp":
            self.snapshot.meta[f"{role}.json"] = meta

    def _signed(self, document: Root | Targets | Snapshot | Timestamp, signers: list[CryptoSigner]) -> bytes:
        metadata: Metadata[Root | Targets | Snapshot | Timestamp] = Metadata(copy.deepcopy(document))
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    # -- targets -----------------------------------------------------------------------------------------------------

    def add_target(self, path: str, content: bytes, role: str = "targets") -> TargetFile:
        """Have `role` vouch for `content`, and serve it."""
        info = TargetFile.from_data(path, content, ["sha256"])
        (self.targets if role == "targets" else self.delegated[role]).targets[path] = info
        folder, slash, name = path.rpartition("/")
        prefix = f"{info.hashes['sha256']}." if self.consistent else ""
        self.served[f"targets/{folder}{slash}{prefix}{name}"] = content
        return info

    def delegate(self, delegator: str, role: str, *paths: str, terminating: bool = False, threshold: int = 1) -> None:
        """Have `delegator` trust a new role with `paths`."""
        document = self.targets if delegator == "targets" else self.delegated[delegator]
        if document.delegations is None:
            document.delegations = Delegations({}, {})
        assert document.delegations.roles is not None
        signer = CryptoSigner.generate_ed25519()
        document.delegations.roles[role] = DelegatedRole(role, [], threshold, terminating, list(paths))
        document.add_key(signer.public_key, role)
        if role not in self.delegated:
            self.delegated[role] = Targets(expires=LATER)
        self.signers.setdefault(role, []).append(signer)

    # -- serving -----------------------------------------------------------------------------------------------------

    @property
    def metadata_asked(self) -> list[str]:
        return [name for name in self.asked if not name.startswith("targets/")]


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, Repository]]]:
    """Serve repositories by name below the URL; yield it and where to put them."""
    repositories: dict[str, Repository] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server calls it so.
            _, name, path = unquote(self.path).split("/", 2)
            repository = repositories[name]
            repository.asked.append(path)
            content = repository.served.get(path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
