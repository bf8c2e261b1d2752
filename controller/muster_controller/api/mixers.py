"""Routes: which mixers may have certificates. For admins.

Whom devices seal to is not ordered here: the offline keys sign that, and `POST /trust/offline` brings it.
"""

from collections.abc import Callable

from fastapi import APIRouter

from muster_controller.api.authentication import because, require
from muster_controller.api.holding import SETTLE_S
from muster_controller.api.schemas.mixers import (
    MixerAdmitted,
    MixerChanged,
    MixerOrder,
    MixerPage,
    MixerView,
    NewMixer,
)
from muster_controller.api.services import Given, Services
from muster_controller.identity.mixers import Mixer
from muster_controller.mixer_card import MixerCard
from muster_controller.operators.roles import Permission
from muster_shared import ids

router = APIRouter(tags=["mixers"], dependencies=[require(Permission.ADMINISTER)])


@router.post("/mixers", status_code=201)
def admit_mixer(given: Given, order: NewMixer) -> MixerAdmitted:
    """Let a mixer have certificates. Devices seal nothing to it before the offline keys say so."""
    card = MixerCard(mixer=order.mixer, identity=order.identity, public_key=bytes.fromhex(order.public_key))
    with because(order.reason):
        made = given.identity.mixers.admit(card)
    given.identity.settled(SETTLE_S)
    admitted = given.identity.mixers.admitted(made)
    return MixerAdmitted(
        made=_view(given, made),
        fleet=admitted.fleet,
        identity_fingerprint=admitted.identity_fingerprint,
        device_url=admitted.device_url,
        ca=admitted.ca,
    )


@router.get("/mixers")
def list_mixers(given: Given) -> MixerPage:
    """Mixers by name, all in one page, and the keys to which devices seal."""
    found = [_view(given, each) for each in given.identity.mixers.all()]
    return MixerPage(mixers=found, keys=sorted(given.releases.repository.mixer_keys()), next=None)


@router.post("/mixers/{mixer}/revoke")
def revoke_mixer(given: Given, mixer: str, order: MixerOrder) -> MixerChanged:
    """Take a mixer's identity for good. Its key for sealing the offline keys have to take away besides."""
    return _order(given, mixer, order, given.identity.mixers.revoke)


@router.post("/mixers/{mixer}/forget")
def forget_mixer(given: Given, mixer: str, order: MixerOrder) -> MixerChanged:
    """Free a mixer's name, so that another key can have it. What it had is worth nothing any more."""
    return _order(given, mixer, order, given.identity.mixers.forget)


def _order(given: Services, mixer: str, order: MixerOrder, carry_out: Callable[[str], Mixer]) -> MixerChanged:
    with because(order.reason):
        found = carry_out(ids.name(mixer, "mixer"))
    return MixerChanged(mixer=_view(given, found), in_effect=given.identity.settled(SETTLE_S))


def _view(given: Services, found: Mixer) -> MixerView:
    identity = found.identity
    return MixerView(
        mixer=found.mixer,
        state=identity.state,
        fingerprint=identity.fingerprint,
        key=found.key,
        is_signed=found.key in given.releases.repository.mixer_keys(),
        admitted_at=identity.asked_at,
        admitted_by=identity.decided_by,
        expires_at=found.expires_at,
        seen_at=found.seen_at or None,
    )
