"""Which engines this device has, and the one that a variant names.

Each is imported when it is first asked for: an agent without openvino installed runs without it.
"""

from functools import cache
from importlib.util import find_spec
from typing import assert_never, get_args

from muster_agent.engines.port import Engine, EngineMissing
from muster_shared.bundle import Runtime

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def available() -> tuple[Runtime, ...]:
    """Return the runtimes that are installed, without importing them; one may still fail to load (`engine` says so)."""
    return tuple(runtime for runtime in RUNTIMES if find_spec(runtime) is not None)


@cache
def engine(name: Runtime) -> Engine:
    """Return the engine `name`, one in a process.

    Raises:
        EngineMissing: it is not installed, or its libraries do not load here.
    """
    try:
        match name:
            case "onnxruntime":
                from muster_agent.engines.onnx_runtime import OnnxRuntime

                return OnnxRuntime()
            case "openvino":
                from muster_agent.engines.open_vino import OpenVino

                return OpenVino()
            case _:
                assert_never(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(name, str(error).partition("\n")[0]) from error
