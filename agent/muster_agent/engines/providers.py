"""Which of ONNX Runtime's execution providers a variant may run on, in order: names alone, no engine.

It does not know which of them this device has: the engine tries them in this order.
"""

from collections.abc import Mapping

from muster_agent.engines.port import ModelUnloadable
from muster_shared.bundle import Variant

SUFFIX = "ExecutionProvider"
CPU = f"CPU{SUFFIX}"
OPTION = "PROVIDERS"

# The ready before the faster: TensorRT compiles a model for minutes, so a variant that wants it says so by name.
BY_ACCELERATOR: Mapping[str, tuple[str, ...]] = {
    "cpu": ("CPU",),
    "gpu": ("CUDA", "MIGraphX", "Dml", "CoreML", "OpenVINO", "WebGpu"),
    "npu": ("QNN", "VitisAI", "OpenVINO", "CoreML", "Nnapi"),
}
_ONLY_BY_NAME = ("Tensorrt", "NvTensorRTRTX", "Xnnpack", "Dnnl", "ACL", "CANN", "Rknpu", "VSINPU", "Azure")
NAMES: Mapping[str, str] = {
    name.casefold(): name for name in (*_ONLY_BY_NAME, *(name for names in BY_ACCELERATOR.values() for name in names))
} | {"directml": "Dml"}
"""As the runtime spells them, by what a manifest may say."""


def candidates(variant: Variant) -> tuple[str, ...]:
    """Return full provider names in the order to try; the CPU's is always the last.

    The variant's option PROVIDERS (such as "TensorRT,CUDA") names them, else its `hardware.accelerator` does.

    Raises:
        ModelUnloadable: the option names what is no execution provider.
    """
    named = [part.strip() for part in variant.options.get(OPTION, "").split(",") if part.strip()]
    if not named:
        named = [name for kind in variant.hardware.accelerator for name in BY_ACCELERATOR.get(kind, ())]
    full: list[str] = []
    for name in named:
        known = NAMES.get(name.removesuffix(SUFFIX).casefold())
        if known is None:
            raise ModelUnloadable(
                f"option {OPTION} of variant {variant.name} names {name[:40]!r}, which is no execution provider"
            )
        full.append(f"{known}{SUFFIX}")
    first_cpu = full.index(CPU) if CPU in full else len(full)
    return tuple(dict.fromkeys([*full[:first_cpu], CPU]))  # The CPU takes every model: nothing after it is reached.


def provider_options(provider: str, variant: Variant, threads: int) -> dict[str, str]:
    """Return what the provider itself must be told."""
    match short(provider):
        case "Xnnpack":
            return {"intra_op_num_threads": str(threads)}
        case "OpenVINO":
            kinds = [kind.upper() for kind in variant.hardware.accelerator if kind in ("gpu", "npu")]
            return {"device_type": kinds[0] if kinds else "CPU"}
        case _:
            return {}


def short(provider: str) -> str:
    """Return `CUDA` of `CUDAExecutionProvider`."""
    return provider.removesuffix(SUFFIX)
