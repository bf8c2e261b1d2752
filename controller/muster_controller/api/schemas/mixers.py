"""Mixers: who may sum up anonymous windows, and to whose key devices seal them."""

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.identity.enrolment import IdentityState
from muster_controller.mixer_card import IDENTITY_CHARACTERS_MAX


class NewMixer(Schema):
    """What `muster mixer create` wrote into its mixer.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixer: str = Field(min_length=1, max_length=64, description="Its name.", json_schema_extra={"example": "mixer-1"})
    identity: str = Field(
        max_length=IDENTITY_CHARACTERS_MAX, description="PEM: the P-256 key with which it asks for certificates."
    )
    public_key: str = Field(
        pattern="^[0-9a-f]{64}$", description="X25519, hex: devices seal to it once the offline keys name it."
    )
    reason: Said = ""


class MixerView(Schema):
    mixer: str
    state: IdentityState
    fingerprint: str = Field(description="SHA-256 of its identity key.")
    key: str = Field(description="The id of its newest key for sealing.")
    is_signed: bool = Field(description="Whether the offline keys name that key, so that devices seal to it.")
    admitted_at: float
    admitted_by: str
    expires_at: float | None = Field(description="Of its certificate; null: it has not asked for one yet.")
    seen_at: float | None = Field(description="When its state came last; null: never.")


class MixerPage(Schema):
    mixers: list[MixerView]
    keys: list[str] = Field(description="Ids of all keys to which devices seal now.")
    next: Next


class MixerAdmitted(Schema):
    """What the mixer needs to ask for its certificates: its admitted.json."""

    made: MixerView
    fleet: str
    identity_fingerprint: str
    device_url: str = Field(description="Where it asks.")
    ca: str = Field(description="PEM: the roots that it trusts there.")


class MixerChanged(Schema):
    mixer: MixerView
    in_effect: bool = Field(description="Whether the broker has been told; if not yet, it is told until it takes it.")


class MixerOrder(Schema):
    reason: Said = ""
