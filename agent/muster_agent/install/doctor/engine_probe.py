"""`python -m ...engine_probe RUNTIME`: load a graph of one addition through the agent's own engine, and run it.

A process of its own, because a broken engine may end with a signal instead of an error.
"""

import sys
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from typing import get_args

import numpy as np

from muster_agent.engines.port import EngineError
from muster_agent.engines.registry import engine
from muster_shared.bundle import Runtime, TensorSpec, Variant

# onnx.helper: y = Add(x, x), float [n, 2], opset 13, IR 8. It has no weights.
DOUBLING = b64decode(
    "CAgSADo/Cg4KAXgKAXgSAXkiA0FkZBIBZ1oUCgF4Eg8KDQgBEgkKAxIBbgoCCAJiFAoBeRIPCg0IARIJCgMSAW4KAggCQgQKABAN"
)


def probe(runtime: Runtime) -> str:
    """Return what was done. Raises EngineError."""
    began = time.monotonic()
    rows = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="muster-doctor-") as folder:
        path = Path(folder, "doubling.onnx")
        path.write_bytes(DOUBLING)
        session = engine(runtime).load(
            path,
            Variant(name="probe", runtime=runtime, precision="fp32", files=(path.name,)),
            (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
            (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
            threads=1,
            cache_dir=Path(folder, "cache"),
        )
        answer = session.run({"x": rows})["y"]
        achieved = session.achieved
        session.close()
    if not np.array_equal(answer, rows * 2):
        raise EngineError(f"1 + 1 is {answer.tolist()} to it")
    return f"{achieved.version} on {achieved.device}, loaded and run in {time.monotonic() - began:.1f} s"


def main() -> int:
    runtime = sys.argv[1] if len(sys.argv) == 2 else ""
    known: dict[str, Runtime] = {name: name for name in get_args(Runtime)}
    if runtime not in known:
        print(f"{runtime!r} is no engine", file=sys.stderr)
        return 2
    try:
        print(probe(known[runtime]))
    except EngineError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
