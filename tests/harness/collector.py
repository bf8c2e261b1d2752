"""An OpenTelemetry collector as small as it can be: OTLP over HTTP, kept in memory."""

import queue
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from harness.endpoint import WAIT_S


class _Collector:
    """Takes what is posted, and answers `status`."""

    def __init__(self) -> None:
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, self.headers["Content-Type"], body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def take(self, path: str, content_type: str, body: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(WAIT_S)
        self._server.server_close()


class Collector(_Collector):
    """Keeps every span, which come as protobuf."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        super().__init__()

    @property
    def endpoint(self) -> str:
        return f"{self.url}/v1/traces"

    def take(self, path: str, content_type: str, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans


class MetricsCollector(_Collector):
    """Hands out the metrics that came, as JSON, in turn."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._taken: queue.Queue[ExportMetricsServiceRequest] = queue.Queue()
        super().__init__()

    def take(self, path: str, content_type: str, body: bytes) -> None:
        assert content_type == "application/json"
        self.paths.add(path)
        self._taken.put(json_format.Parse(body, ExportMetricsServiceRequest()))

    def next(self, timeout_s: float = 60.0) -> ExportMetricsServiceRequest:
        """Wait for the next push."""
        return self._taken.get(timeout=timeout_s)
