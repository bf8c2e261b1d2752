"""The floor of HTTP in Python: an asyncio protocol on httptools and uvloop that runs ONNX Runtime on the loop.

The body is the tensor, the answer is the tensor: no protocol is parsed, nothing is checked, counted or bounded.

    python bare_httptools.py MODEL.onnx PORT
"""

import asyncio
import sys

import httptools
import numpy as np
import onnxruntime
import uvloop


def load(path: str):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


session = load(sys.argv[1])
given, wanted = session.get_inputs()[0], [session.get_outputs()[0].name]
shape = (1, *given.shape[1:])
dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[given.type]


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = []

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_body(self, body):
        self.body.append(body)

    def on_message_complete(self):
        array = np.frombuffer(b"".join(self.body), dtype).reshape(shape)
        self.body.clear()
        answer = session.run(wanted, {given.name: array})[0].tobytes()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(answer) + answer)


async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[2]))
    await server.serve_forever()


uvloop.run(main())
