"""The operator's desk: the controller's HTTP API, and the offline folder that signs what goes there.

The controller holds no key that could sign a release; the demo's operator has them all in one folder, as nobody should.
"""

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from pydantic import BaseModel, ValidationError

from muster_controller.api.schemas import (
    DeviceDetail,
    DevicePage,
    DeviceView,
    EventPage,
    EventView,
    Health,
    LinkMade,
    MemberPage,
    MemberView,
    Published,
    RolloutDetail,
    Status,
)
from muster_controller.api.schemas.identity import EnrolTokenMade, IdentityChanged
from muster_controller.api.schemas.metrics import FiguresView
from muster_controller.core.policy import Policy
from muster_controller.mixer.folder import MixerFolder
from muster_controller.operators.local import read_local
from muster_controller.operators.service import FIRST
from muster_controller.policy_document import written
from muster_controller.registry.bundles import MANIFEST
from muster_controller.registry.metadata import release_role
from muster_controller.registry.operator import sign_release
from muster_shared.bundle import Manifest, parse_manifest
from muster_shared.enrolment import Admitted
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, ModelName

TIMEOUT_S = 35.0  # Longer than the controller lets one of its own calls take.
PAGE = 1000
_HOLDERS = (1, 3)  # Two of the three release key holders are enough, whichever they are.

T = TypeVar("T", bound=BaseModel)


class DeskRefused(MusterError):
    """The controller does not answer, or refuses; the message is its own."""


class Desk:
    """One operator. For one thread."""

    def __init__(self, url: str, data: Path, operator: Path) -> None:
        """
        Args:
            data: The controller's folder: its local token lets us in.
        """
        self._operator = operator
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=TIMEOUT_S, auth=_Local(data))

    def close(self) -> None:
        self._http.close()

    def health(self) -> Health:
        return self._get("/health", Health)

    def link(self) -> str:
        """Return where the first operator sets a password; the link before it is void."""
        return self._post(f"/operators/{FIRST}/link", {}, LinkMade).link

    def enrol_token(self, uses: int, ttl_s: float) -> EnrolTokenMade:
        """Make a token that lets `uses` devices in."""
        return self._post("/enrol-tokens", {"uses": uses, "ttl_s": ttl_s, "reason": "the demo"}, EnrolTokenMade)

    def admit(self, mixer: MixerFolder) -> None:
        """Let a mixer have certificates of the fleet, and tell it where from."""
        card = mixer.card()
        body = {"mixer": card.mixer, "identity": card.identity, "public_key": card.public_key.hex()}
        found = self._ask("POST", "/mixers", content=msgspec.json.encode(body | {"reason": "the demo"}), kind=_JSON)
        mixer.admit(msgspec.convert({**msgspec.json.decode(found), "mixer": card.mixer}, Admitted))

    def classes(self, model: ModelName, since: float) -> FiguresView:
        """Return what is known of the classes that a model's answers came out as, without knowing whose, by hours."""
        query = {"from": int(since)}
        return self._get(f"/metrics/{model}/classes", FiguresView, step="hour", **query)

    def revoke(self, device: DeviceId, reason: str) -> IdentityChanged:
        """Take the identity of `device` for good. Returns when the broker knows."""
        return self._post(f"/identities/{device}/revoke", {"reason": reason}, IdentityChanged)

    def status(self) -> Status:
        return self._get("/status", Status)

    def devices(self) -> Sequence[DeviceView]:
        """Return every device."""
        found: list[DeviceView] = []
        cursor: str | None = None
        while True:
            page = self._get("/devices", DevicePage, limit=PAGE, **({} if cursor is None else {"cursor": cursor}))
            found += page.devices
            cursor = page.next
            if cursor is None:
                return found

    def device(self, device: DeviceId) -> DeviceDetail:
        return self._get(f"/devices/{device}", DeviceDetail)

    def rollout(self, rollout: str) -> RolloutDetail:
        return self._get(f"/rollouts/{rollout}", RolloutDetail)

    def members(self, rollout: str) -> Sequence[MemberView]:
        """Return every device of a rollout."""
        found: list[MemberView] = []
        cursor: str | None = None
        while True:
            query = {} if cursor is None else {"cursor": cursor}
            page = self._get(f"/rollouts/{rollout}/members", MemberPage, limit=PAGE, **query)
            found += page.members
            cursor = None if page.next is None else str(page.next)
            if cursor is None:
                return found

    def events(self, device: str, after: float) -> Sequence[EventView]:
        """Return what `device` reported after the moment `after` (Unix seconds, as the controller took it)."""
        page = self._get("/events", EventPage, device=device, limit=PAGE)
        return [event for event in page.events if event.taken_at > after]

    def publish(self, bundle: Path) -> Manifest:
        """Sign a bundle folder with two of the model's release keys, and hand everything to the controller.

        Raises:
            DeskRefused: the controller does not take it.
            MusterError: as `sign_release`.
        """
        raw = (bundle / MANIFEST).read_bytes()
        manifest = parse_manifest(raw)
        role = release_role(manifest.model)
        for file in manifest.files:
            self._ask("PUT", f"/blobs/{file.sha256}", content=(bundle / file.path).read_bytes(), kind=_OCTETS)
        holders = [f"{role}-{holder}" for holder in _HOLDERS]
        signed = sign_release(self._operator, bundle, None, datetime.now(UTC), with_keys=holders)
        publication = {"metadata": signed.metadata.decode(), "manifest": raw.decode()}
        self._post(f"/models/{manifest.model}/releases", publication, Published)
        return manifest

    def start_rollout(self, model: ModelName, version: str, policy: Policy) -> RolloutDetail:
        order = {"model": model, "version": version, "policy": written(policy)}
        return self._post("/rollouts", order, RolloutDetail)

    def _get(self, path: str, kind: type[T], **query: str | int) -> T:
        return _parse(kind, self._ask("GET", path, query=query))

    def _post(self, path: str, body: object, kind: type[T]) -> T:
        return _parse(kind, self._ask("POST", path, content=msgspec.json.encode(body), kind=_JSON))

    def _ask(
        self, method: str, path: str, *, query: dict[str, Any] | None = None, content: bytes = b"", kind: str = ""
    ) -> bytes:
        headers = {"Content-Type": kind} if kind else {}
        try:
            response = self._http.request(method, path, params=query, content=content or None, headers=headers)
        except httpx.HTTPError as error:
            raise DeskRefused(f"the controller does not answer {method} {path}: {error}") from error
        if response.is_error:
            raise DeskRefused(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response.content


class _Local(httpx.Auth):
    """Sends the local token, which is another after each start of the controller."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {read_local(self._data) or ''}"
        yield request


_JSON = "application/json"
_OCTETS = "application/octet-stream"


def _parse(kind: type[T], raw: bytes) -> T:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise DeskRefused(f"the controller's answer is not a {kind.__name__}: {error}") from error
