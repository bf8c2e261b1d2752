"""An operator who signs and a controller who publishes, in one folder and at one moment; and a hand that forges."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

from harness.bundles import write_bundle
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import SignedRelease, init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.ids import ModelName
from muster_shared.messages import TrustFiles

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DIGITS, OCR = ModelName("digits"), ModelName("ocr")


@dataclass(frozen=True)
class Desk:
    """An operator and a controller in one folder."""

    folder: Path

    @property
    def operator(self) -> Path:
        return self.folder / "operator"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def repository(self) -> TufRepository:
        return TufRepository(self.data)

    def bundle(self, model: ModelName, release: int) -> Path:
        return write_bundle(self.folder, model, release)

    def sign(self, model: ModelName, release: int, *with_keys: str, partial: bool = False) -> SignedRelease:
        return sign_release(self.operator, self.bundle(model, release), None, NOW, with_keys=with_keys, partial=partial)

    def manifest(self, model: ModelName, release: int) -> bytes:
        return (self.bundle(model, release) / "bundle.json").read_bytes()

    def publish(self, model: ModelName, release: int) -> bool:
        signed = self.sign(model, release)
        return self.repository().accept_release(signed.role, signed.metadata, self.manifest(model, release), NOW)

    def key(self, name: str) -> Path:
        return self.operator / "keys" / f"{name}.pem"


def provision(folder: Path) -> Desk:
    """Make the keys of two models, and a controller that knows what the offline ones signed."""
    desk = Desk(folder)
    offline = init_operator(desk.operator, [DIGITS, OCR], create_online_keys(desk.data), NOW)
    desk.repository().accept_offline(offline.root, offline.targets, offline.keys, NOW)
    return desk


def resigned(desk: Desk, metadata: bytes, change: Callable[[Targets], object], *keys: str) -> bytes:
    """Return `metadata` changed by someone who holds `keys`."""
    document: Metadata[Targets] = Metadata.from_bytes(metadata)
    change(document.signed)
    document.signatures.clear()
    for key in keys:
        document.sign(load_signer(desk.key(key)), append=True)
    return document.to_bytes()


def files_of(messages: tuple[TrustFiles, ...]) -> dict[str, str]:
    return {name: text for message in messages for name, text in message.files.items()}
