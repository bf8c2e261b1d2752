"""`muster enroll-token`: what lets devices enrol."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli.arguments import AsJson, Limit, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import length, stamp
from muster_controller.identity.enrolment import Approval
from muster_shared.errors import MusterError

SERIALS_BYTES_MAX = 4 * 1024 * 1024

app = typer.Typer(help="Tokens that let devices enrol.", no_args_is_help=True, epilog=EXIT_CODES)


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", "-l", help="key=value,...: every device that enrols with it has them."),
    ] = None,
    uses: Annotated[
        int | None, typer.Option(min=1, help="So many devices. Default: 1, or one for each serial.")
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it holds: 90m, 24h, 7d.")] = "24h",
    approval: Annotated[
        Approval,
        typer.Option(help="token: at once; manual: somebody accepts each; serial: the hardware is on the list."),
    ] = Approval.TOKEN,
    serials: Annotated[
        Path | None,
        typer.Option(
            help="For serial: a file, one hardware serial number a line, and a device's name after it if you like."
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once, with the line that installs a device."""
    try:
        listed = {} if serials is None else read_serials(serials)
        order = {
            "labels": read_labels(labels or []),
            "uses": uses or max(1, len(listed)),
            "ttl_s": length(ttl),
            "approval": approval.value,
            "serials": listed,
            "reason": reason,
        }
        with connect(context) as api:
            found = api.post("/enrol-tokens", order)
    except (MusterError, OSError) as error:
        refuse(error)
    line = f"muster-agent install --controller {found['device_url']} --token {found['token']}"

    def human(console: Console) -> None:
        made = found["made"]
        until = stamp(made["expires_at"])
        console.print(
            f"Token {made['id']}: {made['uses_max']} devices until {until} UTC, {_how(made)}.", highlight=False
        )
        console.print("On the device:\n")
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print("\nThe token is not shown again, and whoever has it can enrol: send it as you send a password.")

    emit({**found, "install": line}, as_json, human)


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List tokens, newest first, without their secrets."""
    try:
        with connect(context) as api:
            found = api.pages("/enrol-tokens", "tokens", limit, {})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("token", "used", "until", "approval", "labels", "made by", "state")
        for each in found:
            labels = ",".join(f"{key}={value}" for key, value in sorted(each["labels"].items()))
            used = f"{each['uses']} of {each['uses_max']}"
            words = (each["id"], used, stamp(each["expires_at"]), each["approval"], labels, each["created_by"])
            table.add_row(*(escape(str(word)) for word in words), _state(each))
        console.print(table if found else "No token yet; `muster enroll-token create` makes one.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Its id, as `list` shows it.")],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let nobody enrol with a token any more. Devices that did stay."""
    try:
        with connect(context) as api:
            found = api.post(f"/enrol-tokens/{token}/revoke", {"reason": reason})
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: console.print(f"Token {token} is revoked.", highlight=False))


def read_labels(words: list[str]) -> dict[str, str]:
    """Return the labels in `key=value,key=value` words."""
    found: dict[str, str] = {}
    for pair in (pair for word in words for pair in word.split(",") if pair.strip()):
        key, equals, value = pair.partition("=")
        if not key.strip() or not equals:
            fail(f"a label is written key=value, not {pair!r}")
        found[key.strip()] = value.strip()
    return found


def read_serials(file: Path) -> dict[str, str | None]:
    """Return serial numbers, and the device that each is to be: `SERIAL [DEVICE]` a line, `#` begins a remark."""
    if file.stat().st_size > SERIALS_BYTES_MAX:
        fail(f"{file} is too large for a list of serial numbers; make several tokens")
    found: dict[str, str | None] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if len(words) > 2 or (words and words[0] in found):
            fail(f"{file}:{number}: write one serial number a line, once, and a device's name after it if you like")
        if words:
            found[words[0]] = words[1] if len(words) > 1 else None
    return found


def _how(made: dict[str, Any]) -> str:
    match made["approval"]:
        case "manual":
            return "each waits for `muster device accept`"
        case "serial":
            return f"{made['serials']} serial numbers"
        case _:
            return "accepted at once"


def _state(token: dict[str, Any]) -> str:
    if token["revoked_at"] is not None:
        return "revoked"
    if token["expires_at"] <= time.time():
        return "run out"
    return "spent" if token["uses"] >= token["uses_max"] else "good"
