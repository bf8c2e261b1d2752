"""The engine within a user's own program: no agent, no socket, no hop. A bundle folder in, answers out.

    with Engine.open("bundles/digits-2.0.0") as digits:
        answer = digits.infer(image)                  # answer.outputs["probabilities"], answer.version, answer.digest

What it opens is proven here first, as on a device: every file by its digest, and the golden cases through the engine.
Whose release it is, nobody checks: signatures are the agent's matter, and so are queues, limits and metrics.
"""

import hashlib
import itertools
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from muster_agent.client.dialogue import Answer
from muster_agent.client.schema import Release, Side
from muster_agent.engines import registry
from muster_agent.engines.golden import self_test
from muster_agent.engines.port import Array, EngineError, ModelUnloadable, Session
from muster_agent.io.host import HardwareOverrides, detect_hardware, usable_cpus
from muster_agent.serving.call import Call
from muster_agent.serving.execution import Execution
from muster_shared.bundle import (
    MANIFEST_BYTES_MAX,
    BundleFile,
    Manifest,
    Runtime,
    Variant,
    digest,
    parse_manifest,
)
from muster_shared.errors import BundleError, FileTampered, ManifestInvalid
from muster_shared.messages import Hardware
from muster_shared.variants import fits

MANIFEST = "bundle.json"


class NothingFits(BundleError):
    """No variant of the release runs here."""

    def __init__(self, release: str, reasons: Mapping[str, str]) -> None:
        told = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())
        super().__init__(f"no variant of {release} runs on this machine ({told}); install its engine, or add a variant")
        self.reasons = dict(reasons)


class Engine:
    """One release, loaded and proven. Made by `Engine.open`. `infer` may be called from several threads."""

    def __init__(self, manifest: Manifest, release: Release, session: Session, cache: Path | None) -> None:
        self.manifest = manifest
        self.release = release
        """What serves: version, digest, engine, inputs and outputs."""
        self._session = session
        self._cache = cache
        self._inputs = Side(manifest.inputs)
        self._execution = Execution(session, manifest.inputs, manifest.outputs)
        outputs = Side(manifest.outputs)
        self._outputs = tuple(zip(outputs.names, outputs.batches, strict=True))
        # As the agent's service counts: ids do not repeat across restarts.
        self._prefix = f"{secrets.token_hex(6)}-"
        self._numbers = itertools.count(1)
        self._closing = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        runtimes: tuple[Runtime, ...] | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Engine":
        """Load the bundle in `folder`, as `muster model build` makes it, in the first variant that runs here.

        Args:
            threads: Of one inference; None: as many as this process may use.
            runtimes: The engines that may be used; None: all that are installed.
            variant: Only this one, by name.
            cache_dir: What engines compile is kept in there, by the release's digest; None: only until `close`.
        Raises:
            ManifestInvalid: there is no bundle, or it contradicts itself.
            FileTampered: a file is not the one that the manifest names.
            NothingFits: no variant fits this machine, loads, and passes the golden cases; the message says why of each.
        """
        root = Path(folder)
        raw = _read_manifest(root)
        manifest, sha256 = parse_manifest(raw), digest(raw)
        kept = None if cache_dir is None else Path(cache_dir) / sha256
        cache = kept or Path(tempfile.mkdtemp(prefix="muster-engine-"))
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            chosen, session = _load(root, manifest, _hardware(runtimes), variant, threads or usable_cpus(), cache)
        except BaseException:
            if kept is None:
                shutil.rmtree(cache, ignore_errors=True)
            raise
        achieved = session.achieved
        release = Release(
            index=0,
            model=manifest.model,
            version=manifest.version,
            digest=sha256,
            engine=f"{achieved.engine} {achieved.version} {achieved.device} {achieved.precision} ({chosen.name})",
            inputs=manifest.inputs,
            outputs=manifest.outputs,
        )
        return cls(manifest, release, session, None if kept is not None else cache)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, inputs: Array | Mapping[str, Array]) -> Answer:
        """Return the answer to one inference.

        Args:
            inputs: Each input by name, or the one that there is. Without its batch axis it is one row, and the outputs
                have no batch axis either.
        Raises:
            InputRefused: it does not fit the manifest: shape, data type, finite, range.
            InferenceFailed: the engine failed, or this is closed.
        """
        given, single = self._inputs.fit(inputs)
        tensors = tuple(array if array.dtype.kind == "O" else _raw(array) for array in given)
        rows, shapes = 1, [array.shape for array in given]
        for index, batch in enumerate(self._inputs.batches):
            if batch:
                rows, shapes[index] = shapes[index][0], shapes[index][1:]
        call = Call(tensors, tuple(shapes), rows)
        self._execution.run((call,))
        if call.error is not None:
            raise call.error
        outputs = {}
        for index, (name, batch) in enumerate(self._outputs):
            array = call.output(index)
            outputs[name] = array[0] if single and batch else array
        return Answer(outputs, self.release, self._prefix, next(self._numbers), -1)

    def close(self) -> None:
        """Free the model. Harmless twice."""
        with self._closing:
            self._session.close()
            if self._cache is not None:
                shutil.rmtree(self._cache, ignore_errors=True)
                self._cache = None


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise ManifestInvalid(f"{path} has more than {MANIFEST_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ManifestInvalid(
            f"{path} cannot be read ({error.strerror}); build the folder with `muster model build`"
        ) from error


def _load(
    root: Path,
    manifest: Manifest,
    hardware: Hardware,
    wanted: str | None,
    threads: int,
    cache: Path,
) -> tuple[Variant, Session]:
    """Return the first variant that fits, loads and passes the golden cases, and its session."""
    reasons: dict[str, str] = {}
    for variant in manifest.variants:
        if wanted not in (None, variant.name):
            continue
        if not fits(variant, hardware):
            reasons[variant.name] = _needs(variant)
            continue
        for file in manifest.files_for(variant):
            _verify(root, file)
        folder = cache / variant.name
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            session = registry.engine(variant.runtime).load(
                root / variant.files[0], variant, manifest.inputs, manifest.outputs, threads=threads, cache_dir=folder
            )
        except EngineError as error:
            reasons[variant.name] = str(error)
            continue
        try:
            report = self_test(session, manifest, root / manifest.golden.file)
        except BaseException:
            session.close()
            raise
        if report.passed:
            return variant, session
        session.close()
        reasons[variant.name] = f"it fails the golden cases: {report.reason}"
    if not reasons:
        raise ModelUnloadable(f"there is no variant {wanted!r}; there are {[each.name for each in manifest.variants]}")
    raise NothingFits(f"{manifest.model} {manifest.version}", reasons)


def _verify(root: Path, file: BundleFile) -> None:
    try:
        with (root / file.path).open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ManifestInvalid(f"{file.path} cannot be read ({error.strerror}); build the bundle again") from error
    if actual != file.sha256:
        raise FileTampered(file.path, file.sha256, actual)


def _hardware(runtimes: tuple[Runtime, ...] | None) -> Hardware:
    installed = registry.available()
    usable = tuple(runtime for runtime in runtimes or installed if runtime in installed)
    return detect_hardware("embedded", usable, HardwareOverrides())


def _needs(variant: Variant) -> str:
    need = variant.hardware
    words = [*need.arch, *need.accelerator, *([f"{need.memory_mb_min} MB"] if need.memory_mb_min else [])]
    return f"it needs {variant.runtime} and {', '.join(words) or 'nothing else'}"


def _raw(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
