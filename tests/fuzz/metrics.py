"""Targets of the metrics: windows at the mixer, sums at the controller, and reference files at both."""

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fuzz.target import Target, once
from muster_agent.metrics.reference import Reference
from muster_agent.metrics.reference_build import Observed, build
from muster_controller.core.metrics import believing
from muster_shared.ids import ModelName
from muster_shared.messages import decode, encode
from muster_shared.metrics import (
    DAY_S,
    SEALED_BYTES_MAX,
    UNITS,
    WINDOW_BYTES,
    Budget,
    Cell,
    Kind,
    Mixed,
    MixerState,
    Sealed,
    Window,
    key_id,
    pack,
    sigma,
    units,
    unpack,
)
from muster_shared.sealing import open_sealed, seal

NOW = 1_795_000_000.0
_PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
_PUBLIC = _PRIVATE.public_key().public_bytes_raw()
_KEYS = {key_id(_PUBLIC): _PRIVATE}
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
CELL = Cell(model=ModelName("digits"), version="1.0.0", device_class="pi5-cpu", region="north", classes=10)


def _window() -> Window:
    given = {Kind.CLASSES: pack({1: 60, 9: 4}), Kind.FEEDBACK: pack({3: UNITS}), Kind.LATENCY: pack({40: 64})}
    return Window(cell=CELL, period_start=20_000 * DAY_S, period_s=3600, nonce="ab" * 16, units=given)


@once
def window_seeds() -> list[bytes]:
    return [msgspec.json.encode(_window())]


def open_window(data: bytes) -> None:
    """Whatever a device seals: what opens gives no more than it has, and within its kinds."""
    plain = data[:WINDOW_BYTES].ljust(WINDOW_BYTES)
    box = _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(_PUBLIC), b"muster metrics window v1")
    window = open_sealed(encode(Sealed(key=key_id(_PUBLIC), box=box)), _KEYS)
    for kind in window.units:
        given = units(window, kind)
        assert sum(given.values()) <= UNITS
        assert all(0 <= index < window.cell.dim(kind) for index in given)
    assert open_sealed(seal(window, _PUBLIC), _KEYS) == window


@once
def sealed_seeds() -> list[bytes]:
    return [seal(_window(), _PUBLIC)]


def open_any(data: bytes) -> None:
    open_sealed(data, _KEYS)


@once
def histogram_seeds() -> list[bytes]:
    return [pack({0: 1, 5: 300, 511: 70_000})]


def unpack_any(data: bytes) -> None:
    """What unpacks packs into something that unpacks to the same."""
    found = unpack(data, 512)
    assert unpack(pack(found), 512) == found


@once
def mixed_seeds() -> list[bytes]:
    mixed = Mixed(
        batch="b-1",
        mixer="mixer-1",
        cell=CELL,
        period_start=int(NOW) // 3600 * 3600 - 7200,
        period_s=3600,
        devices=100,
        sums={Kind.CLASSES: tuple(range(10)), Kind.DRIFT: (6000, -5, 2, 1)},
        sigma={Kind.CLASSES: sigma(Kind.CLASSES), Kind.DRIFT: sigma(Kind.DRIFT)},
        mixed_at=NOW,
    )
    state = MixerState(
        mixer="mixer-1",
        sent_at=NOW,
        key=key_id(_PUBLIC),
        cohorts=(0, 1),
        delta=1e-6,
        eps_day=2.45,
        eps_30_days=15.9,
        k_min=20,
        budgets=(Budget(day=20_000, rho_spent=0.01, rho_budget=0.1),),
    )
    return [encode(mixed), encode(state)]


def believe(data: bytes) -> None:
    """What a mixer says of sums and of itself; what is believed has the numbers that it must have."""
    mixed = decode(data, Mixed)
    if next(believing.problems(mixed, "mixer-1", NOW), None) is None:
        assert mixed.devices >= 20
        assert all(len(sums) == mixed.cell.dim(kind) for kind, sums in mixed.sums.items())
        assert all(mixed.sigma[kind] > 0 for kind in mixed.sums)


def believe_state(data: bytes) -> None:
    state = decode(data, MixerState)
    next(believing.state_problems(state, "mixer-1"), None)


@once
def reference_seeds() -> list[bytes]:
    draws = np.random.default_rng(1)
    scores = draws.dirichlet(np.ones(4), 400).astype(np.float32)
    observed = Observed(inputs={"x": draws.normal(size=(400, 6)).astype(np.float32)}, scores=scores, groups=None)
    return [build(observed, windows=100)]


def parse_reference(data: bytes) -> None:
    found = Reference.parse(data)
    assert np.isfinite(found.confidence_windows).all()


TARGETS = (
    Target("window", open_window, window_seeds, bytes_max=WINDOW_BYTES),
    Target("sealed", open_any, sealed_seeds, bytes_max=SEALED_BYTES_MAX + 100),
    Target("histogram", unpack_any, histogram_seeds, bytes_max=1024),
    Target("mixed", believe, mixed_seeds),
    Target("mixer-state", believe_state, mixed_seeds),
    Target("reference", parse_reference, reference_seeds),
)
