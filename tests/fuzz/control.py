"""Targets of the controller's other doors: policies, selectors, ceremony files, online keys, bodies of the API."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec
from pydantic import ValidationError

from fuzz.target import Target, once
from muster_controller.api import schemas
from muster_controller.api.schemas.base import Schema
from muster_controller.api.schemas.identity import IdentityOrder, NewEnrolToken
from muster_controller.core import selector
from muster_controller.core.policy import PolicyInvalid
from muster_controller.policy_document.reading import parse_policy
from muster_controller.policy_document.writing import dump, written
from muster_controller.registry import ceremony_begin, ceremony_words
from muster_controller.registry.ceremony import join, needs, sign, stage
from muster_controller.registry.ceremony_file import Ceremony, awaited, encode_ceremony, parse_ceremony
from muster_controller.registry.errors import RegistryError
from muster_controller.registry.keys import OnlinePublicKeys, encode_online_keys, parse_online_keys
from muster_controller.registry.tuf_repository import create_online_keys
from muster_shared.errors import WireError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

# -- policies and selectors --------------------------------------------------------------------------------------------


@once
def policy_seeds() -> list[bytes]:
    folder = files("muster_controller.policies")
    shipped = [entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return [*shipped, *(json.dumps(written(parse_policy(raw))).encode() for raw in shipped), b'{"waves": [5, "25%"]}']


def read_policy(data: bytes) -> None:
    """What reads can be written, and reads the same."""
    policy = parse_policy(data)

    assert parse_policy(dump(policy)) == policy
    assert parse_policy(msgspec.json.encode(written(policy))) == policy


def read_selector(data: bytes) -> None:
    """Its canonical text means the same."""
    found = selector.parse(data.decode("utf-8", "replace"))

    assert selector.parse(str(found)) == found
    selector.contradiction(found)


# -- ceremonies --------------------------------------------------------------------------------------------------------


@cache
def _online() -> OnlinePublicKeys:
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return create_online_keys(folder)


@once
def ceremony_seeds() -> list[bytes]:
    names = ("root-anna", "root-ben", "targets-anna", "targets-ben", "release-digits-anna", "release-digits-ben")
    begun = ceremony_begin.begin_create("c0", names, {}, _online(), NOW)
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-"))
    try:
        one, _ = join(begun, folder / "anna", "anna", NOW)
        both, _ = join(one, folder / "ben", "ben", NOW)
        signed, _ = sign(both, folder / "anna")
        signed, _ = sign(signed, folder / "ben")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [encode_ceremony(each) for each in (begun, one, both, signed)]


def read_ceremony(data: bytes) -> None:
    """Whoever carries the file may damage it and nothing else: every step reads it, or refuses it in words."""
    ceremony = parse_ceremony(data)

    assert parse_ceremony(encode_ceremony(ceremony)) == ceremony
    awaited(ceremony)
    for step in (ceremony_words.plan, ceremony_words.digest, ceremony_words.joined_digest, ceremony_words.explain):
        _told(step, ceremony)
    _told(stage, ceremony)
    _told(needs, ceremony)


def _told(step: Callable[[Ceremony], object], ceremony: Ceremony) -> None:
    """What is said to people is words: a terminal would obey the rest."""
    with suppress(RegistryError, WireError):
        said = step(ceremony)
        lines = [line for part in said.values() for line in part] if isinstance(said, dict) else said
        for line in lines if isinstance(lines, list) else [lines]:
            assert not isinstance(line, str) or line.isprintable(), line


def read_online_keys(data: bytes) -> None:
    found = parse_online_keys(data)

    assert parse_online_keys(encode_online_keys(found)) == found


# -- the API -----------------------------------------------------------------------------------------------------------

BODIES: tuple[type[Schema], ...] = (
    schemas.RolloutOrder,
    schemas.RollbackOrder,
    schemas.Ordering,
    schemas.PolicyQuestion,
    schemas.Because,
    schemas.LoginOrder,
    schemas.TokenOrder,
    schemas.NewOperator,
    schemas.NewRole,
    schemas.NewPassword,
    schemas.OwnPassword,
    NewEnrolToken,
    IdentityOrder,
)


@once
def body_seeds() -> list[bytes]:
    whole = (
        {"model": "digits", "version": "1.4.0", "policy": {"waves": [5, "25%"]}, "dry_run": True},
        {"to": "1.3.0", "reason": "slow", "policy": "waves: [5]"},
        {"order": "pause", "reason": "look"},
        {"policy": {"waves": [1]}, "model": "digits"},
        {
            "name": "anna",
            "password": "a long enough pass phrase",
            "roles": [{"role": "operator", "selector": "site=a"}],
        },
        {"labels": {"site": "berlin"}, "uses": 3, "lifetime_s": 3600.0, "approval": "token", "note": "n"},
        {"name": "ci", "lifetime_s": 60, "roles": ["viewer"]},
    )
    return [json.dumps(each).encode() for each in whole]


def read_bodies(data: bytes) -> None:
    """A body is refused by pydantic's one error, and what is taken is written and read again alike."""
    refused: ValidationError | None = None
    for kind in BODIES:
        try:
            found = kind.model_validate_json(data)
        except ValidationError as error:
            refused = error
            continue
        assert kind.model_validate(found.model_dump()) == found
        _told_of(found)
    if refused is not None:
        raise WireError(refused.title)  # Its words are the API's to cut: `problems` does.


def _told_of(found: Schema) -> None:
    policy = getattr(found, "policy", None)
    if isinstance(policy, dict | str):
        with suppress(PolicyInvalid):
            parse_policy(json.dumps(policy) if isinstance(policy, dict) else policy)
    text = getattr(found, "selector", None)
    if isinstance(text, str):
        with suppress(selector.SelectorInvalid):
            selector.parse(text)


YAML_WORDS = (
    b"waves:",
    b"- ",
    b"\n  ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"&a ",
    b"*a",
    b"!!int ",
    b"---\n",
    b"|\n",
    b">",
    b"'",
    b'"',
    b"#",
    b"%",
    b"1e999",
    b"90s",
    b"25%",
    b"\t",
    b"? ",
    b"\xe2\x80\xa8",
    b"\\ud800",
)
TARGETS = (
    Target("policy", read_policy, policy_seeds, (PolicyInvalid,), YAML_WORDS, bytes_max=66 * 1024),
    Target(
        "selector",
        read_selector,
        lambda: (b"site=berlin,tier in (a,b),!old,x notin (1,2), hw/class!=pi5", b"a.b/c==d", b""),
        (selector.SelectorInvalid,),
        (b"=", b"==", b"!=", b"!", b",", b" in ", b" notin ", b"(", b")", b"/", b"hw/", b".", b"-", b"<"),
        bytes_max=5000,
    ),
    Target("ceremony", read_ceremony, ceremony_seeds, (RegistryError, WireError)),
    Target("online-keys", read_online_keys, lambda: (encode_online_keys(_online()),), (WireError,)),
    Target("api-bodies", read_bodies, body_seeds, (WireError,)),
)
