"""The classes of devices that simulated fleets are made of: made up, but of the sizes that stand at the edge."""

from muster_shared.messages import Hardware

CLASSES = (
    Hardware(device_class="pi5-cpu", arch="aarch64", cpu_count=4, memory_mb=4096, runtimes=("onnxruntime",)),
    Hardware(
        device_class="nuc-gpu",
        arch="x86_64",
        accelerators=("cpu", "gpu"),
        cpu_count=8,
        memory_mb=16384,
        runtimes=("onnxruntime", "openvino"),
    ),
    Hardware(
        device_class="orin-npu",
        arch="aarch64",
        accelerators=("cpu", "npu"),
        cpu_count=6,
        memory_mb=8192,
        runtimes=("onnxruntime",),
    ),
    Hardware(device_class="old-box", arch="x86_64", cpu_count=2, memory_mb=2048, runtimes=("onnxruntime",)),
)
