"""A bare ASGI app on uvicorn (httptools, uvloop) that speaks V2 binary; with `--batch` it runs together what is queued.

It answers inference requests for one model and nothing else: no checks, no metrics, no bounds.

    python bare_uvicorn.py MODEL.onnx PORT [--batch]
"""

import asyncio
import sys

import msgspec
import numpy as np
import onnxruntime
import uvicorn

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given, wanted = session.get_inputs()[0], session.get_outputs()[0].name
dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[given.type]
LENGTH = b"inference-header-content-length"


class Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str


class Request(msgspec.Struct):
    inputs: list[Tensor]


decode = msgspec.json.Decoder(Request).decode
encode = msgspec.json.Encoder().encode
queue = []


def flush():
    arrays = [array for array, _ in queue]
    waiting = [future for _, future in queue]
    queue.clear()
    rows = session.run([wanted], {given.name: np.concatenate(arrays)})[0]
    start = 0
    for array, future in zip(arrays, waiting, strict=True):
        if not future.done():
            future.set_result(rows[start : start + len(array)])
        start += len(array)


async def batched(array):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    if not queue:
        loop.call_soon(flush)
    queue.append((array, future))
    return await future


async def alone(array):
    return session.run([wanted], {given.name: array})[0]


infer = batched if "--batch" in sys.argv else alone


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = next(int(value) for name, value in scope["headers"] if name == LENGTH)
    tensor = decode(body[:length]).inputs[0]
    answer = await infer(np.frombuffer(body, dtype, offset=length).reshape(tensor.shape))
    raw = answer.tobytes()
    parameters = {"binary_data_size": len(raw)}
    output = {"name": wanted, "datatype": "FP32", "shape": answer.shape, "parameters": parameters}
    head = encode({"model_name": "model", "model_version": "1", "outputs": [output]})
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % (len(head) + len(raw))),
        (LENGTH, b"%d" % len(head)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": head + raw})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
