"""The bare engine in process, as a script: what every server is a ratio to. It needs numpy and the engine alone.

    python raw.py ENGINE MODEL.onnx EXAMPLE.npy --mode one --seconds 4       figures as one line of JSON
    python raw.py ENGINE MODEL.onnx EXAMPLE.npy --hold                       says `ready`, waits for the end of stdin

    one   batch 1, one thread           two  batch 1, two threads of the engine
    2x1   batch 1, two callers of one thread each       b32  batch 32, one thread

Options are those that the agent's engines set.
"""

import argparse
import json
import resource
import sys
import threading
import time

MODES = ("one", "two", "2x1", "b32")


def load(engine: str, model: str, threads: int, callers: int):
    """Return one function (array) -> None for each caller; the model is loaded once."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name, outputs = session.get_inputs()[0].name, [session.get_outputs()[0].name]
        return [lambda array: session.run(outputs, {name: array})] * callers
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY" if callers == 1 else "THROUGHPUT",
        "INFERENCE_NUM_THREADS": str(threads * callers),
        "NUM_STREAMS": str(callers),
        "CACHE_DIR": "",
    }
    compiled = openvino.Core().compile_model(model, "CPU", config)
    requests = [compiled.create_infer_request() for _ in range(callers)]
    return [
        lambda array, request=request: request.infer([array], share_inputs=True, share_outputs=False)
        for request in requests
    ]


def measure(runs, array, seconds: float) -> dict[str, float]:
    """Call each of `runs` in a thread of its own for `seconds`."""
    for run in runs:
        for _ in range(3):  # Here, one after another: OpenVINO's binding can lock up when two threads ask it first.
            run(array)
    times_ns: list[list[int]] = [[] for _ in runs]

    def loop(run, taken: list[int]) -> None:
        barrier.wait()
        clock, end = time.perf_counter_ns, time.perf_counter_ns() + int(seconds * 1e9)
        before = clock()
        while before < end:
            run(array)
            after = clock()
            taken.append(after - before)
            before = after

    barrier = threading.Barrier(len(runs) + 1)
    threads = [threading.Thread(target=loop, args=each) for each in zip(runs, times_ns, strict=True)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began, cpu = time.perf_counter(), _cpu_s()
    for thread in threads:
        thread.join()
    took_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    calls = sorted(each for taken in times_ns for each in taken)
    rows = len(calls) * len(array)
    return {
        "rps": rows / took_s,
        "p50_us": calls[len(calls) // 2] / 1e3,
        "p99_us": calls[int(len(calls) * 0.99)] / 1e3,
        "requests": rows,
        "cpu_s_per_1000": cpu_s / rows * 1000,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=("onnxruntime", "openvino"))
    parser.add_argument("model")
    parser.add_argument("example")
    parser.add_argument("--mode", choices=MODES, default="one")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    import numpy

    array = numpy.load(options.example)
    if options.hold:
        load(options.engine, options.model, 1, 1)[0](array)
        print("ready", flush=True)
        sys.stdin.read()
        return 0
    if options.mode == "b32":
        array = numpy.repeat(array, 32, axis=0)
    runs = load(options.engine, options.model, 2 if options.mode == "two" else 1, 2 if options.mode == "2x1" else 1)
    print(json.dumps(measure(runs, array, options.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
