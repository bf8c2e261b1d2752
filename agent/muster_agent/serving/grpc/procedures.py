"""The short procedures: what the server and its models are, did and have in shared memory; loading and unloading.

The bodies are those that HTTP answers, with the same names; `codec.filled` makes messages of them. It runs nothing.
"""

import asyncio
from collections.abc import Callable, Mapping

from muster_agent.serving import extensions
from muster_agent.serving.app import Repository
from muster_agent.serving.grpc.messages import Message
from muster_agent.serving.grpc.statuses import Unsupported
from muster_agent.serving.shared_memory import NamedRegion, Regions
from muster_agent.serving.table import ModelUnknown, ServingTable
from muster_agent.serving.v2 import RequestInvalid
from muster_shared.errors import MusterError

Body = Mapping[str, object]


class Procedures:
    """All procedures but inference. Lives on the serving loop."""

    def __init__(
        self,
        table: ServingTable,
        regions: Regions,
        *,
        agent_version: str,
        ready: Callable[[], bool],
        repository: Repository | None,
    ) -> None:
        self._table = table
        self._regions = regions
        self._agent_version = agent_version
        self._ready = ready
        self._repository = repository

    async def answer(self, name: str, request: Message) -> Body:
        """Return the response of procedure `name`, by fields.

        Raises:
            MusterError: it is refused; see `statuses`.
        """
        match name:
            case "RepositoryModelLoad" | "RepositoryModelUnload":
                return await self._change(request.model_name, load=name == "RepositoryModelLoad")
            case "RepositoryIndex":
                return self._index(ready=request.ready)
            case name if "SharedMemory" in name:
                return self._shared_memory(name, request)
            case name if name.startswith("Server"):
                return self._server(name)
            case _:
                return self._model(name, request.name, request.version or None)

    def _server(self, name: str) -> Body:
        match name:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                return {"ready": self._ready()}
            case "ServerMetadata":
                return extensions.server(self._agent_version)
        raise AssertionError(name)

    def _model(self, name: str, model: str, version: str | None) -> Body:
        match name:
            case "ModelReady":
                try:
                    self._table.place(model, version)  # A release is in the table only when it is warm.
                except ModelUnknown:
                    return {"ready": False}
                return {"ready": True}
            case "ModelMetadata":
                return extensions.metadata(self._table.place(model, version))
            case "ModelConfig":
                return {"config": extensions.config(self._table.served(model, version))}
            case "ModelStatistics":
                places = [self._table.place(model, version)] if model else self._table.places().values()
                return extensions.statistics(places)
        raise AssertionError(name)

    def _index(self, *, ready: bool) -> Body:
        repository = self._repository
        models = extensions.index(self._table) if repository is None else repository.index()
        return {"models": [model for model in models if not ready or model["state"] == "READY"]}

    async def _change(self, model: str, *, load: bool) -> Body:
        repository = self._repository
        if repository is None:
            raise RequestInvalid("this agent loads and unloads nothing on request")
        outcome: asyncio.Future[MusterError | None] = asyncio.get_running_loop().create_future()

        def done(error: MusterError | None) -> None:
            if not outcome.done():  # The caller may have gone.
                outcome.set_result(error)

        (repository.load if load else repository.unload)(model, done)
        error = await outcome
        if error is not None:
            raise error
        return {}

    def _shared_memory(self, name: str, request: Message) -> Body:
        regions = self._regions
        match name:
            case "SystemSharedMemoryStatus":
                return {"regions": {region.name: _region(region) for region in regions.status(request.name or None)}}
            case "SystemSharedMemoryRegister":
                regions.register(request.name, request.key, request.offset, request.byte_size)
            case "SystemSharedMemoryUnregister":
                regions.unregister(request.name or None)
            case "CudaSharedMemoryRegister":
                raise Unsupported("there is no CUDA shared memory on this agent; use system shared memory")
            case "CudaSharedMemoryStatus" | "CudaSharedMemoryUnregister":
                pass  # There is none, and none is there after.
            case _:
                raise AssertionError(name)
        return {}


def _region(region: NamedRegion) -> Body:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
