"""The page and the API over HTTP, in a thread of their own, with the certificate that they speak TLS by."""

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvicorn

from muster_controller import __version__
from muster_controller.api import prometheus
from muster_controller.api.app import create_app
from muster_controller.api.guard import LOOPBACK
from muster_controller.api.services import Services
from muster_controller.api.tls import PageCertificate
from muster_controller.config import ServerConfig, TlsFiles
from muster_controller.errors import ServerUnavailable
from muster_controller.export.otlp import Pusher
from muster_controller.identity.desk import IdentityDesk
from muster_controller.server.machine import ANY_HOST
from muster_controller.web.frame import add_pages
from muster_controller.web.pages import ROUTERS

PAGE_CERTIFICATE_FILE: Final = "page.pem"
HTTP_READY_S: Final = 20.0


def serve_http(
    config: ServerConfig,
    services: Services,
    listener: socket.socket,
    certificate: PageCertificate | None,
    stack: ExitStack,
) -> None:
    """Serve the API and the pages until `stack` is closed; when this returns, they answer. Raises ServerUnavailable."""
    app = create_app(services)
    if config.otlp_url is not None:
        _push_metrics(config.otlp_url, services, prometheus.exposition_of(app), stack)
    add_pages(app, services, *ROUTERS)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            ssl_context_factory=None if certificate is None else lambda _config, _default: certificate.context,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()

    def stop() -> None:
        services.hub.close()
        server.should_exit = True
        thread.join(10.0)

    stack.callback(stop)
    deadline = time.monotonic() + HTTP_READY_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ServerUnavailable("the HTTP server does not come up; its log says why")
        time.sleep(0.01)


def page_certificate(config: ServerConfig, identity: IdentityDesk) -> PageCertificate | None:
    """Return the certificate of page and API; None: it speaks plain HTTP."""
    if config.tls is None:
        return None
    if isinstance(config.tls, TlsFiles):
        return PageCertificate(config.tls, time.time)
    names = [each for each in (*LOOPBACK, config.host, *config.names) if each not in ANY_HOST]
    file = config.data / PAGE_CERTIFICATE_FILE

    def renew() -> float:
        issued = identity.enrolment.ca.issue_server(list(dict.fromkeys(names)), file, time.time())
        return (issued.issued_at + issued.expires_at) / 2

    return PageCertificate(TlsFiles(file, file), time.time, renew)


def page_file(config: ServerConfig) -> Path | None:
    """Return the file with the certificate of page and API; None: they speak plain HTTP."""
    tls = config.tls
    if tls is None:
        return None
    return tls.certificate if isinstance(tls, TlsFiles) else config.data / PAGE_CERTIFICATE_FILE


def _push_metrics(url: str, services: Services, exposition: prometheus.Exposition, stack: ExitStack) -> None:
    resource = {"service.name": "muster-controller", "service.instance.id": services.fleet_id}
    pusher = Pusher(url, lambda: exposition.families(services), resource, __version__, time.time)
    pusher.start()
    stack.callback(pusher.stop)
