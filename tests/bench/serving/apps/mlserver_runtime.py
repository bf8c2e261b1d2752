"""MLServer's custom runtime for an ONNX model, V2 JSON with its own NumPy codec. `mlserver start FOLDER` imports it."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OrtModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        path = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = self._session.get_inputs()[0]
        self._given, self._wanted = given.name, self._session.get_outputs()[0].name
        self._dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[given.type]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        array = self.decode(payload.inputs[0], default_codec=NumpyCodec).astype(self._dtype, copy=False)
        rows = self._session.run([self._wanted], {self._given: array})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self._wanted, rows)])
