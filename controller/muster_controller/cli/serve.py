"""`muster serve`: the controller in the foreground."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from muster_controller.alerts.smtp import SmtpConfig, parse_smtp
from muster_controller.broker.embedded import BrokerKind
from muster_controller.cli.output import fail
from muster_controller.config import (
    BROKER_PORT,
    BROKER_TLS_PORT,
    DATA,
    DEVICE_PORT,
    FLEET,
    HOST,
    PORT,
    ServerConfig,
    TlsFiles,
)
from muster_controller.operators.oidc_config import OidcConfig, parse_role
from muster_shared.errors import MusterError
from muster_shared.ids import FleetId


def serve(
    data: Annotated[Path, typer.Option("--data", "-d", envvar="MUSTER_DATA", help="The controller's folder.")] = DATA,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="MUSTER_DATABASE",
            help="postgresql://user:password@host/name; keep passwords in the environment. Default: SQLite in --data.",
        ),
    ] = None,
    fleet: Annotated[str, typer.Option(help="The fleet's name, part of every topic.")] = FLEET,
    port: Annotated[int, typer.Option(help="Of the page and the API; 0 takes a free one.")] = PORT,
    host: Annotated[
        str, typer.Option(help="Where the page and the API listen: 0.0.0.0 for all addresses; then with TLS alone.")
    ] = HOST,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name under which operators reach it; repeat it, the best first.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain of the page and the API, PEM.", dir_okay=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", dir_okay=False)] = None,
    tls_fleet_ca: Annotated[
        bool, typer.Option("--tls-fleet-ca", help="A certificate of the fleet CA, which is renewed by itself.")
    ] = False,
    oidc_issuer: Annotated[
        str | None, typer.Option(envvar="MUSTER_OIDC_ISSUER", help="Let operators log in by OpenID Connect here.")
    ] = None,
    oidc_client_id: Annotated[
        str, typer.Option(envvar="MUSTER_OIDC_CLIENT_ID", help="The client; its secret is MUSTER_OIDC_CLIENT_SECRET.")
    ] = "muster",
    oidc_claim: Annotated[str, typer.Option(help="The claim that names groups or roles.")] = "groups",
    oidc_role: Annotated[
        list[str] | None,
        typer.Option(help="What a value of it gives: fleet-ops=operator, or berlin=operator:site=berlin; repeat it."),
    ] = None,
    broker_url: Annotated[
        str | None,
        typer.Option(envvar="MUSTER_BROKER_URL", help="A broker of yours: mqtt://host:1883. Default: one is started."),
    ] = None,
    broker: Annotated[BrokerKind, typer.Option(help="Which broker to start.")] = BrokerKind.AUTO,
    broker_port: Annotated[
        int | None,
        typer.Option(help=f"Of the started broker; 0 is free. Default: {BROKER_TLS_PORT}, open lab: {BROKER_PORT}."),
    ] = None,
    open_lab: Annotated[
        bool, typer.Option("--open-lab", help="The started broker takes anybody on this machine, without TLS.")
    ] = False,
    device_port: Annotated[int, typer.Option(help="Where devices enrol and renew; 0 is free.")] = DEVICE_PORT,
    device_host: Annotated[
        str, typer.Option(help="Where the device port and the started broker listen: 0.0.0.0 for all addresses.")
    ] = HOST,
    device_name: Annotated[
        list[str] | None,
        typer.Option(help="A name or address under which devices reach this machine; repeat it, the best one first."),
    ] = None,
    adopt_keys: Annotated[
        bool, typer.Option("--adopt-keys", help="The CA and keys in --data replace those that --database knows of.")
    ] = False,
    smtp_url: Annotated[
        str | None,
        typer.Option(
            envvar="MUSTER_SMTP_URL",
            help="Where alerts are mailed by: smtps://user@host or smtp://user@host (STARTTLS); the password is"
            " MUSTER_SMTP_PASSWORD.",
        ),
    ] = None,
    smtp_sender: Annotated[
        str, typer.Option(envvar="MUSTER_SMTP_SENDER", help="Who the mail is from. Default: the SMTP user.")
    ] = "",
    smtp_password_file: Annotated[
        Path | None, typer.Option(help="A file with the SMTP password, instead of the variable.", dir_okay=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the random order of devices in rollouts, to repeat a history. Default: none.")
    ] = None,
    otlp_url: Annotated[
        str | None,
        typer.Option(envvar="MUSTER_OTLP_URL", help="Push metrics to this OpenTelemetry collector: http://host:4318."),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run the controller: page, API, registry, rollouts and (unless you name yours) an MQTT broker.

    Everybody logs in: the first start prints a link for `admin`; on this machine the command line needs no login if it
    may read the data folder. Page and API listen on 127.0.0.1 alone, unless --host says otherwise. SIGTERM and Ctrl-C
    end it cleanly; whatever was under way goes on at the next start.
    """
    from muster_controller import server  # Slow to import, and no other command needs all of it.

    config = ServerConfig(
        data=data,
        database=database,
        fleet=FleetId(fleet),
        port=port,
        host=host,
        names=tuple(name or ()),
        tls=_tls(tls_cert, tls_key, by_ca=tls_fleet_ca),
        oidc=_oidc(oidc_issuer, oidc_client_id, oidc_claim, oidc_role or []),
        broker_url=broker_url,
        broker_kind=broker,
        broker_port=broker_port,
        open_lab=open_lab,
        device_port=device_port,
        device_host=device_host,
        device_names=tuple(device_name or ()),
        adopt_keys=adopt_keys,
        smtp=_smtp(smtp_url, smtp_sender, smtp_password_file),
        seed=seed,
        otlp_url=otlp_url,
        log_json=log_json,
        verbose=verbose,
    )
    try:
        server.serve(config)
    except (MusterError, OSError) as error:
        fail(error)


def _tls(certificate: Path | None, key: Path | None, *, by_ca: bool) -> TlsFiles | Literal["fleet-ca"] | None:
    if certificate is None and key is None:
        return "fleet-ca" if by_ca else None
    if by_ca:
        fail("give --tls-fleet-ca or a certificate of yours, not both")
    if certificate is None or key is None:
        fail("give --tls-cert and --tls-key together")
    return TlsFiles(certificate, key)


def _smtp(url: str | None, sender: str, password_file: Path | None) -> SmtpConfig | None:
    if url is None:
        return None
    try:
        password = os.environ.get("MUSTER_SMTP_PASSWORD", "")
        if password_file is not None:
            password = password_file.read_text(encoding="utf-8").strip()
        return parse_smtp(url, password, sender)
    except (MusterError, OSError) as error:
        fail(error)


def _oidc(issuer: str | None, client_id: str, claim: str, roles: list[str]) -> OidcConfig | None:
    if issuer is None:
        return None
    try:
        given = dict(map(parse_role, roles))
    except ValueError as error:
        fail(f"--oidc-role: {error}")
    return OidcConfig(issuer, client_id, os.environ.get("MUSTER_OIDC_CLIENT_SECRET", ""), claim, given)
