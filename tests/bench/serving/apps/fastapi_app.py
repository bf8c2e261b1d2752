"""A plain FastAPI app on uvicorn, as one writes it for a single model: JSON rows in, JSON rows out.

python fastapi_app.py MODEL.onnx PORT
"""

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given, wanted = session.get_inputs()[0], [session.get_outputs()[0].name]
dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[given.type]
app = FastAPI()


class Request(BaseModel):
    input: list


class Response(BaseModel):
    output: list[list[float]]


@app.post("/predict")
async def predict(request: Request) -> Response:
    return Response(output=session.run(wanted, {given.name: np.array(request.input, dtype)})[0].tolist())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
