"""What the page can order and filter, the command line can, too: tables of what belongs together, held against both.

A template's order is one of the API's, or a form of the page's own; each of these has a command here. A list of the API
has a command whose options are its query parameters.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from muster_controller.api import document as openapi
from muster_controller.cli.main import app
from muster_controller.core.rollout.events import Order
from muster_controller.web.pages import audit, rollouts

TEMPLATES = Path(__file__).parents[2] / "controller" / "muster_controller" / "web" / "templates"
DOCUMENT: dict[str, Any] = json.loads(openapi.text())
PREFIX = "/api/v1"
PAGING = {"limit", "cursor"}
SPEECH = {"--json", "--yaml", "--watch", "--every", "--limit", "--help"}
"""Options about how, not about what."""

ORDERS = {
    "POST /account/password": "password",
    "POST /alerts/{}/acknowledge": "alert ack",
    "PUT /blobs/{}": "model publish",
    "POST /devices/labels": "device label",
    "POST /devices/{}/calls": "device call",
    "POST /devices/{}/decommission": "device decommission",
    "POST /devices/{}/labels": "device label",
    "POST /devices/{}/pin": "device pin",
    "POST /devices/{}/quarantine": "device quarantine",
    "POST /devices/{}/release": "device release",
    "POST /devices/{}/unpin": "device unpin",
    "POST /enrol-tokens": "enroll-token create",
    "POST /enrol-tokens/{}/revoke": "enroll-token revoke",
    "POST /identities/{}/accept": "device accept",
    "POST /identities/{}/forget": "device forget",
    "POST /identities/{}/reject": "device reject",
    "POST /identities/{}/revoke": "device revoke",
    "POST /login": "login",
    "POST /mixers": "mixer admit",
    "POST /mixers/{}/forget": "mixer forget",
    "POST /mixers/{}/revoke": "mixer revoke",
    "POST /models/{}/releases": "model publish",
    "POST /models/{}/releases/check": "model publish",
    "POST /models/{}/rollback": "rollback",
    "DELETE /objectives/{}": "slo remove",
    "PUT /objectives/{}": "slo set",
    "POST /operators": "user create",
    "POST /operators/{}/disable": "user disable",
    "POST /operators/{}/enable": "user enable",
    "POST /operators/{}/link": "user link",
    "POST /operators/{}/password": "user password",
    "POST /operators/{}/role": "user role",
    "POST /operators/{}/unlock": "user unlock",
    "POST /policies/check": "policy check",
    "POST /receivers": "receiver add",
    "DELETE /receivers/{}": "receiver remove",
    "POST /receivers/{}/test": "receiver test",
    "POST /rollouts": "rollout create",
    "POST /rollouts/{}/abort": "rollout abort",
    "POST /rollouts/{}/approve": "rollout approve",
    "POST /rollouts/{}/extend": "rollout extend",
    "POST /rollouts/{}/pause": "rollout pause",
    "POST /rollouts/{}/resume": "rollout resume",
    "POST /rollouts/{}/retry": "rollout retry",
    "POST /rollouts/{}/rollback": "rollout rollback",
    "POST /rollouts/{}/skip": "rollout skip",
    "DELETE /session": "logout",
    "POST /silences": "alert silence",
    "DELETE /silences/{}": "alert unsilence",
    "POST /tokens": "token create",
    "DELETE /tokens/{}": "token revoke",
    "POST /trust/offline": "trust push",
    "DELETE /views/{}/{}": "device views delete",
    "PUT /views/{}/{}": "device views save",
}
FORMS = {
    "/account/password": "password",
    "/account/revoke": "token revoke",
    "/account/tokens": "token create",
    "/login": "login",
    "/login/once": None,  # The link is opened where its receiver is: in a browser.
    "/logout": "logout",
    "/users": "user create",
    "/users/{}/disable": "user disable",
    "/users/{}/enable": "user enable",
    "/users/{}/link": "user link",
    "/users/{}/role": "user role",
    "/users/{}/unlock": "user unlock",
}
"""Forms of pages whose answers a browser has to have: cookies, and secrets that are shown once."""
UPLOADS = {"release": "model publish", "trust": "trust push", "metadata": "model push-metadata"}

LISTS: dict[str, tuple[str, dict[str, str]]] = {
    "/alerts": (
        "alerts",
        {"state": "--ended --pending", "rule": "--rule", "subject": "--subject", "since": "--since"},
    ),
    "/audit": (
        "audit list",
        {
            "actor": "--actor",
            "subject": "--subject",
            "action": "--action",
            "request_id": "--request",
            "since": "--since",
            "until": "--until",
        },
    ),
    "/devices": (
        "device list",
        {
            "state": "--state",
            "online": "--online",
            "class": "--class",
            "label": "--label",
            "selector": "--selector",
            "q": "--text",
            "model": "--model",
            "version": "--version",
            "held": "--held",
            "error": "--error",
            "silent": "--silent",
            "sort": "--sort",
        },
    ),
    "/devices/{}/calls": ("device calls", {}),
    "/enrol-tokens": ("enroll-token list", {}),
    "/events": ("history", {"device": "--device", "rollout": "--rollout"}),
    "/holds": ("device holds", {"kind": "--kind"}),
    "/identities": ("device identities", {"state": "--state"}),
    "/labels": ("device labels", {"prefix": "PREFIX", "values": ""}),  # As many as a line of a terminal takes.
    "/models": ("model list", {}),
    "/notes": ("history", {"subject": "--about"}),
    "/objectives": ("slo list", {}),
    "/operators": ("user list", {}),
    "/receivers": ("receiver list", {}),
    "/reviews": ("review", {}),
    "/rollouts": ("rollout list", {"state": "--state", "model": "--model", "q": "--text"}),
    "/rollouts/{}/evidence": ("rollout explain", {}),
    "/rollouts/{}/members": (
        "rollout devices",
        {"outcome": "--outcome", "wave": "--wave", "arm": "--arm", "q": "--text"},
    ),
    "/rollouts/{}/waiting": ("rollout waiting", {"why": "--why"}),
    "/silences": ("alert silences", {}),
    "/tokens": ("token list", {"operator": "--for", "all": "--all"}),
    "/views": ("device views list", {"page": ""}),  # Its own.
}
"""By route: the command, and by query parameter the option, the ARGUMENT, or nothing where the text says why."""
OWN = {
    "device list": {"--view", "--csv"},  # A kept filter; another form of the answer.
    "history": {"--about", "--device", "--rollout"},  # Two lists in one command.
    "review": {"--week", "--list", "--markdown"},
    "rollout explain": {"--from", "--recompute"},
}
"""Options of a list's command that are no parameter of the list."""

PAGES = {
    "/rollouts": (rollouts.router, "/rollouts", {}),
    "/rollouts/{rollout_id}": (rollouts.router, "/rollouts/{}/members", {"why": "/rollouts/{}/waiting", "waiting": ""}),
    "/audit": (audit.router, "/audit", {"day": "since", "check": ""}),
}
"""By page: the list of the API that it shows, and parameters of the page that are another's there, or none."""


def commands() -> dict[str, dict[str, list[str]]]:
    """Return by command its options, all spellings by the first one, and its ARGUMENTs."""
    found: dict[str, dict[str, list[str]]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*words, name))
        if not hasattr(command, "commands"):
            found[" ".join(words)] = {
                (each.opts[0] if each.param_type_name == "option" else each.name.upper()): [
                    *each.opts,
                    *each.secondary_opts,
                ]
                for each in command.params
            }

    walk(typer.main.get_command(app), ())
    return found


COMMANDS = commands()


def bare(path: str) -> str:
    """Return an address without what stands in its braces, and without the API's prefix."""
    return re.sub(r"\{\{.*?\}\}|\{\w+\}", "{}", path).removeprefix(PREFIX)


def operations() -> Iterator[str]:
    for path, found in DOCUMENT["paths"].items():
        for method in found:
            if method == "get":
                continue
            if path.endswith("/rollouts/{rollout_id}/{order}"):
                yield from (f"POST /rollouts/{{}}/{each.value}" for each in Order)
            else:
                yield f"{method.upper()} {bare(path)}"


def forms() -> Iterator[tuple[str, str]]:
    """Yield the template and the opening tag of each form."""
    for file in sorted(TEMPLATES.glob("*.html")):
        text = file.read_text()
        for begin in re.finditer(r"<form\b", text):
            yield file.name, _tag(text[begin.start() :])


def _tag(text: str) -> str:
    """Return the tag that `text` begins with: a `>` in quotes, or in the template's own braces, does not end it."""
    is_quoted = False
    for piece in re.finditer(r"\{\{.*?\}\}|\{%.*?%\}|.", text, re.DOTALL):
        is_quoted ^= piece[0] == '"'
        if piece[0] == ">" and not is_quoted:
            return text[: piece.end()]
    raise AssertionError(f"a form has no end: {text[:80]}")


def attribute(tag: str, name: str) -> str | None:
    found = re.search(rf"""\b{name}="((?:\{{\{{.*?\}}\}}|[^"])*)\"""", tag)
    return None if found is None else found[1]


def is_same(order: str, known: str) -> bool:
    """Return whether two orders may be one: what is in braces may be anything."""
    ours, theirs = order.split("/"), known.split("/")
    return len(ours) == len(theirs) and all(a == b or "{}" in (a, b) for a, b in zip(ours, theirs, strict=True))


def lists() -> Iterator[tuple[str, set[str]]]:
    for path, found in DOCUMENT["paths"].items():
        asked = {each["name"] for each in found.get("get", {}).get("parameters", ()) if each.get("in") == "query"}
        if asked >= PAGING:
            yield bare(path), asked - PAGING


def test_every_order_of_the_api_has_a_command() -> None:
    assert set(operations()) == set(ORDERS), "an order without a command, or a line of the table without an order"
    assert {name for name in ORDERS.values() if name not in COMMANDS} == set()


def test_every_order_in_a_template_is_one_of_those_that_have_a_command() -> None:
    found = {
        (file, f"{attribute(tag, 'data-method') or 'POST'} {bare(order)}")
        for file, tag in forms()
        if (order := attribute(tag, "data-order")) is not None
    }
    written = sum(each.read_text().count("data-order=") for each in TEMPLATES.glob("*.html"))

    lost = [(file, order) for file, order in sorted(found) if not any(is_same(order, each) for each in ORDERS)]
    assert lost == []
    assert sum(attribute(tag, "data-order") is not None for _, tag in forms()) == written, "a form was not read"


def test_every_form_and_upload_of_a_page_has_a_command() -> None:
    posted = {bare(attribute(tag, "action") or "") for _, tag in forms() if attribute(tag, "method") == "post"}
    uploads = {each for _, tag in forms() if (each := attribute(tag, "data-upload")) is not None}

    assert posted == set(FORMS)
    assert uploads == set(UPLOADS)
    assert {name for name in (*FORMS.values(), *UPLOADS.values()) if name not in (None, *COMMANDS)} == set()


def test_every_list_of_the_api_has_a_command() -> None:
    assert {path for path, _ in lists()} == set(LISTS)
    assert {name for name, _ in LISTS.values() if name not in COMMANDS} == set()


@pytest.mark.parametrize(("path", "asked"), list(lists()))
def test_a_list_is_filtered_by_the_options_of_its_command_and_by_no_others(path: str, asked: set[str]) -> None:
    name, options = LISTS[path]
    has = COMMANDS[name]
    spelt = {each for words in has.values() for each in words} | set(has)
    wanted = {word for words in options.values() for word in words.split()}

    assert set(options) == asked, "the API has other parameters than the table"
    assert wanted <= spelt, "the table names an option that the command does not have"
    mine = {first for first, words in has.items() if first.startswith("--") and not wanted & set(words)}
    assert mine - SPEECH - OWN.get(name, set()) == set(), "the command has an option that the API does not know"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_filters_by_its_list_in_the_api_filters_by_too(page: str) -> None:
    router, path, others = PAGES[page]
    route: Any = next(each for each in router.routes if getattr(each, "path", "") == page)
    known = dict(lists())

    asked = {each.alias for each in route.dependant.query_params} - PAGING
    assert {each for each in asked - known[path] if each not in others} == set()
    assert {other for other in others.values() if other and other not in known and other not in known[path]} == set()
