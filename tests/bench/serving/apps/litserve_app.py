"""LitServe as its guide has it: one worker process on the CPU, JSON rows in, JSON rows out.

python litserve_app.py MODEL.onnx PORT
"""

import sys

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        given = self.session.get_inputs()[0]
        self.name, self.wanted = given.name, [self.session.get_outputs()[0].name]
        self.dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[given.type]

    def decode_request(self, request):
        return np.array(request["input"], self.dtype)

    def predict(self, array):
        return self.session.run(self.wanted, {self.name: array})[0]

    def encode_response(self, rows):
        return {"output": rows.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
