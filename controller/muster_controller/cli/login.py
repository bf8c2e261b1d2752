"""`muster login|logout|whoami`: a token for this command line, kept for the controller's URL."""

import os
import socket
import sys
import time
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli import logins
from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import TOKEN_VARIABLE, Api, connect, refuse, where_of
from muster_controller.cli.logins import Login
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import stamp
from muster_shared.errors import MusterError


def login(
    context: typer.Context,
    url: Annotated[str | None, typer.Argument(help="The controller. Default: as --url or --context.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Your operator's name. Default: it asks.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Log in with name and password; a token of thirty days is kept in ~/.config/muster/credentials.json.

    Who logs in by OIDC has no password: make a token on the page, under Account, and set MUSTER_TOKEN to it.
    """
    try:
        where = where_of(context, url)
        person = name or typer.prompt("Name", err=True)
        password = read_password("Password", from_stdin=password_stdin)
        with Api(replace(where, token=None)) as api:
            if not api.is_private:
                fail(f"{api.url} would carry your password in the clear; use https")
            body = {"name": person, "password": password, "where": socket.gethostname()[:40]}
            found = api.post("/login", body)
        kept = Login(found["token"], found["id"], found["operator"], found["expires_at"])
        logins.keep(where.url, kept)
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        console.print(
            f"Logged in at {where.url} as {kept.operator}, until {stamp(kept.expires_at)} UTC.", highlight=False
        )
        if os.environ.get(TOKEN_VARIABLE):
            console.print(f"But {TOKEN_VARIABLE} is set, and comes first.", highlight=False)

    emit({"url": where.url, "operator": kept.operator, "expires_at": kept.expires_at}, as_json, human)


def logout(context: typer.Context) -> None:
    """Revoke the token of `muster login` for this controller, and forget it."""
    try:
        where = where_of(context)
        kept = logins.find(where.url)
        if kept is None:
            fail(f"nobody is logged in at {where.url}")
        try:
            with Api(replace(where, token=kept.token)) as api:
                api.delete("/session")
        except MusterError as error:
            logins.forget(where.url)
            fail(f"forgotten here, but not revoked there: {error}; an admin can: `muster token revoke {kept.id}`")
        logins.forget(where.url)
    except (MusterError, OSError) as error:
        refuse(error)
    Console().print(f"Logged out at {where.url}.", highlight=False)


def whoami(context: typer.Context, as_json: AsJson = False) -> None:
    """Say who the controller takes you for, and what you may do."""
    try:
        with connect(context) as api:
            found = api.get("/session")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        devices = f"devices of {found['selector']}" if found["selector"] else "every device"
        console.print(f"{found['name']} at {api.url}: {found['role']}, {devices}.", highlight=False)
        console.print(f"May {', '.join(found['permissions'])}.", highlight=False)
        if found["expires_at"]:
            hours = max(0.0, found["expires_at"] - time.time()) / 3600
            console.print(f"This {found['kind']} runs out in {hours:.0f} h.", highlight=False)

    emit({"url": api.url, **found}, as_json, human)


def password(
    context: typer.Context,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the present one and the new one from two lines of stdin.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Change your own password. Your sessions are over; tokens, that of `muster login` too, stay."""
    try:
        with connect(context) as api:
            if not api.is_private:
                fail(f"{api.url} would carry your password in the clear; use https")
            current = read_password("Present password", from_stdin=password_stdin)
            new = read_password("New password", from_stdin=password_stdin, twice=True)
            api.post("/account/password", {"current": current, "password": new})
    except MusterError as error:
        refuse(error)
    emit({"url": api.url, "changed": True}, as_json, lambda console: console.print("You have a new password."))


def read_password(what: str, *, from_stdin: bool, twice: bool = False) -> str:
    """Ask for a password without showing it, or take the first line of stdin: never from the arguments, which
    everybody on a machine can see."""
    if from_stdin:
        return sys.stdin.readline(1024).rstrip("\r\n")
    return str(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))
