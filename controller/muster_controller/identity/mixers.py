"""Which mixers there are: an operator admits each by its card, and from then on it asks for certificates by itself.

    (nobody) ── admit ──▶ accepted ── revoke ──▶ revoked ── forget ──▶ (nobody, but for the key)

It is an identity like a device's, under a name that no device can have (`mixer.<id>.<fleet>`): requests, renewals,
revocation lists and the device port are the same (`service`). To whom devices seal is not decided here, but by the
offline keys: whoever owns the controller can admit a mixer, and it will open nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from muster_controller.acting import Acting, acting
from muster_controller.client_names import mixer_name, mixer_of
from muster_controller.db.identity_store import IdentityReading, IdentityStore
from muster_controller.identity import enrolment
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.enrolment import Identity, IdentityState
from muster_controller.identity.errors import EnrolmentConflict, MixerUnknown
from muster_controller.identity.service import Reached
from muster_controller.mixer_card import MixerCard, check_card
from muster_shared.enrolment import Admitted
from muster_shared.ids import DeviceId, Sha256
from muster_shared.metrics import key_id


@dataclass(frozen=True)
class Mixer:
    """A mixer as the rows tell it. Times are Unix seconds.

    Attributes:
        key: `metrics.key_id` of the key that its card named.
        expires_at: of its newest certificate; None: it has not asked for one.
        seen_at: when it was heard last; 0.0: never.
    """

    mixer: str
    identity: Identity
    key: str
    expires_at: float | None
    seen_at: float


class Mixers:
    """Safe from any thread."""

    def __init__(
        self,
        ca: FleetCa,
        store: IdentityStore,
        clock: Callable[[], float],
        reached: Callable[[], Reached],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called after the commit of anything that brokers have to know."""
        self._ca, self._store, self._clock, self._reached, self._changed = ca, store, clock, reached, changed

    def all(self) -> list[Mixer]:
        """Return every one that was admitted and not forgotten, by name."""
        with self._store.reading() as rows:
            return [self._mixer(rows, each) for each in rows.mixers(self._ca.fleet)]

    def admit(self, card: MixerCard) -> Mixer:
        """Let the mixer of this card have certificates. Again does no harm, and takes another key for sealing.

        Raises:
            WireError: the card is none, or its name is too long for a certificate.
            EnrolmentConflict: the name is that of another identity key, or this key is that of somebody else.
        """
        check_card(card)
        name = DeviceId(mixer_name(self._ca.fleet, card.mixer))
        now, who = self._clock(), acting()
        public, fingerprint = _identity(card.identity)
        with self._store.writing(who, now) as rows:
            known = rows.identity(name)
            if known is None:
                if rows.has_key(fingerprint):
                    raise EnrolmentConflict(
                        "this identity key was revoked, or is that of somebody else; make another folder: "
                        "`muster mixer create`"
                    )
            elif known.fingerprint != fingerprint:
                raise EnrolmentConflict(
                    f"mixer {card.mixer} has another identity key; say `muster mixer forget {card.mixer}` if it was "
                    "made anew"
                )
            elif known.state is IdentityState.REVOKED:
                raise EnrolmentConflict(f"mixer {card.mixer} is revoked; make a new folder with `muster mixer create`")
            identity = known or _accepted(name, public, fingerprint, now, who)
            rows.save_identity(identity, "mixer.admit", f"key {fingerprint[:16]}, seals to {card.key_id}")
            rows.save_mixer_key(card.mixer, card.public_key.hex())
            found = self._mixer(rows, identity)
        self._changed()
        return found

    def admitted(self, mixer: Mixer) -> Admitted:
        """Return what a mixer needs to ask for its first certificate."""
        reached = self._reached()
        return Admitted(
            mixer=mixer.mixer,
            fleet=self._ca.fleet,
            identity_fingerprint=mixer.identity.fingerprint,
            device_url=reached.device_url,
            ca=self._ca.roots_pem.decode(),
        )

    def revoke(self, mixer: str) -> Mixer:
        """Take a mixer's identity for good: its connection is cut, its key is never granted again.

        Devices go on sealing to its key until the offline keys no longer name it. Raises NotFound, EnrolmentConflict.
        """
        now, who = self._clock(), acting()
        with self._store.writing(who, now) as rows:
            identity = enrolment.revoke(self._found(rows, mixer), who.actor, who.reason, now)
            revoked = rows.revoke_certificates(identity.device)
            rows.save_identity(identity, "mixer.revoke", f"key {identity.fingerprint[:16]}, {revoked} certificates")
            found = self._mixer(rows, identity)
        self._changed()
        return found

    def forget(self, mixer: str) -> Mixer:
        """Free a mixer's name for another key; its certificates hold no more. Raises NotFound."""
        now = self._clock()
        with self._store.writing(acting(), now) as rows:
            found = self._mixer(rows, self._found(rows, mixer))
            rows.revoke_certificates(found.identity.device)
            rows.forget(found.identity)
        self._changed()
        return found

    def _found(self, rows: IdentityReading, mixer: str) -> Identity:
        found = rows.identity(DeviceId(mixer_name(self._ca.fleet, mixer)))
        if found is None:
            raise MixerUnknown(mixer)
        return found

    def _mixer(self, rows: IdentityReading, identity: Identity) -> Mixer:
        mixer = mixer_of(identity.device, self._ca.fleet)
        assert mixer is not None, "rows of mixers have names of mixers"
        newest = next((each for each in rows.certificates(identity.device, 1) if each.revoked_at is None), None)
        public_key, seen_at = rows.mixer_keys().get(mixer, ("", 0.0))
        return Mixer(
            mixer=mixer,
            identity=identity,
            key=key_id(bytes.fromhex(public_key)) if public_key else "",
            expires_at=None if newest is None else newest.expires_at,
            seen_at=seen_at,
        )


def _identity(text: str) -> tuple[str, Sha256]:
    """Return the key's PEM as we write it, and the SHA-256 of its DER; the card was checked."""
    key = load_pem_public_key(text.encode("ascii"))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return public, Sha256(sha256(der).hexdigest())


def _accepted(name: DeviceId, public: str, fingerprint: Sha256, now: float, who: Acting) -> Identity:
    return Identity(
        device=name,
        state=IdentityState.ACCEPTED,
        public_key=public,
        fingerprint=fingerprint,
        token="",
        labels={},
        hardware_serial="",
        agent_version="",
        device_class="",
        asked_at=now,
        decided_at=now,
        decided_by=who.actor,
        reason=who.reason,
    )
