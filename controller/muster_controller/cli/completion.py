"""Shell completion: names that the controller knows. Quick, and silent when it does not answer: the shell waits."""

from typing import Any

import typer

from muster_controller.cli import contexts as known_contexts
from muster_controller.cli.client import Api, where_of
from muster_shared.errors import MusterError

TIMEOUT_S = 1.0
SHOWN = 200


def rollouts(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/rollouts", limit=SHOWN).get("rollouts", [])
    return [
        (each["id"], f"{each['model']} {each['version']}, {each['state']}")
        for each in found
        if each["id"].startswith(incomplete)
    ]


def models(context: typer.Context, incomplete: str) -> list[str]:
    found = _ask(context, "/models").get("models", [])
    return [each["name"] for each in found if each["name"].startswith(incomplete)]


def versions(context: typer.Context, incomplete: str) -> list[str]:
    """Return the releases of the model that is typed already, else of every model; the newest first."""
    model = context.params.get("model")
    found = _ask(context, "/models").get("models", [])
    names = [version for each in found if model in (None, each["name"]) for version in reversed(each["versions"])]
    return [each for each in dict.fromkeys(names) if each.startswith(incomplete)]


def devices(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/devices", limit=SHOWN, **({"q": incomplete} if incomplete else {})).get("devices", [])
    return [
        (each["id"], f"{each['device_class']}, {'online' if each['online'] else 'offline'}")
        for each in found
        if each["id"].startswith(incomplete)
    ]


def views(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return one's own views of devices."""
    found = _ask(context, "/views", page="devices").get("views", [])
    return [(each["name"], each["query"]) for each in found if each["name"].startswith(incomplete)]


def calls(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the calls of the device that is typed already."""
    device = context.params.get("device")
    found = _ask(context, f"/devices/{device}/calls", limit=SHOWN).get("calls", []) if device else []
    return [(each["id"], f"{each['what']}, {each['state']}") for each in found if each["id"].startswith(incomplete)]


def label_words(context: typer.Context, incomplete: str) -> list[str]:
    """Return label keys, or `key=value` where a key is typed already."""
    found = _ask(context, "/labels", prefix=incomplete).get("labels", [])
    if "=" in incomplete:
        return [f"{each['key']}={value['value']}" for each in found for value in each["top"]]
    return [str(each["key"]) for each in found]


def selectors(context: typer.Context, incomplete: str) -> list[str]:
    """Return how a selector goes on: its last condition, behind what is typed."""
    head, comma, word = incomplete.rpartition(",")
    return [f"{head}{comma}{each}" for each in label_words(context, word)]


def alerts(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/alerts", state="firing", limit=SHOWN).get("alerts", [])
    return [(each["id"], f"{each['rule']} {each['subject']}") for each in found if each["id"].startswith(incomplete)]


def alert_rules(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/alerts/rules").get("rules", [])
    return [(each["name"], each["title"]) for each in found if each["name"].startswith(incomplete)]


def silences(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/silences").get("silences", [])
    return [(each["id"], f"{each['rule']} {each['subject']}") for each in found if each["id"].startswith(incomplete)]


def objectives(context: typer.Context, incomplete: str) -> list[str]:
    found = _ask(context, "/objectives").get("objectives", [])
    return [each["name"] for each in found if each["name"].startswith(incomplete)]


def receivers(context: typer.Context, incomplete: str) -> list[str]:
    found = _ask(context, "/receivers").get("receivers", [])
    return [each["name"] for each in found if each["name"].startswith(incomplete)]


def operators(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _ask(context, "/operators").get("operators", [])
    return [(each["name"], str(each.get("role", ""))) for each in found if each["name"].startswith(incomplete)]


def contexts(incomplete: str) -> list[tuple[str, str]]:
    """Return the contexts of this command line; nobody is asked."""
    try:
        found = known_contexts.read().contexts
    except MusterError:
        return []
    return [(name, each.url) for name, each in sorted(found.items()) if name.startswith(incomplete)]


def _ask(context: typer.Context, path: str, **params: str | int) -> dict[str, Any]:
    try:
        with Api(where_of(context), timeout_s=TIMEOUT_S, tries=1) as api:
            found = api.get(path, params)
    except (MusterError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
