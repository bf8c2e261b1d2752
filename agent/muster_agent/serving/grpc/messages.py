"""The messages of `inference.GRPCInferenceService`: names, numbers and types of their fields, and classes of them.

The names and numbers are the Open Inference Protocol's and Triton's public ones; that they agree is a test's to say.
The classes live in a pool of their own, because a client library in the same process registers the same names. Of
`ModelConfig` there is what this agent says; readers skip what they do not know, and miss nothing that is not there.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

Message = Any
"""An instance of one of `CLASSES`: protobuf makes them when this is imported, so no checker knows their fields."""

Fields = Mapping[str, tuple[int, str]]
"""name -> (number, type): a scalar, an enum or a message; `*T` is repeated, `{T}` is a map from string."""

_NAMED: Fields = {"name": (1, "string")}
_RELEASE: Fields = {"name": (1, "string"), "version": (2, "string")}
_PARAMETERS: Fields = {"parameters": (3, "{ModelRepositoryParameter}")}
_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)

MESSAGES: Mapping[str, Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _RELEASE,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_RELEASE, "extensions": (3, "*string")},
    # What models are.
    "ModelMetadataRequest": _RELEASE,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "*string"),
        "platform": (3, "string"),
        "inputs": (4, "*ModelMetadataResponse.TensorMetadata"),
        "outputs": (5, "*ModelMetadataResponse.TensorMetadata"),
    },
    "ModelMetadataResponse.TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64")},
    "ModelConfigRequest": _RELEASE,
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "*ModelInput"),
        "output": (6, "*ModelOutput"),
        "instance_group": (7, "*ModelInstanceGroup"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "parameters": (14, "{ModelParameter}"),
        "backend": (17, "string"),
        "response_cache": (24, "ModelResponseCache"),
    },
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "*int64")},
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "*int64")},
    "ModelInstanceGroup": {"name": (1, "string"), "count": (2, "int32"), "kind": (4, "ModelInstanceGroup.Kind")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "*int32"), "max_queue_delay_microseconds": (2, "uint64")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelResponseCache": {"enable": (1, "bool")},
    # What models did.
    "ModelStatisticsRequest": _RELEASE,
    "ModelStatisticsResponse": {"model_stats": (1, "*ModelStatistics")},
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "*InferBatchStatistics"),
    },
    "InferStatistics": {name: (number, "StatisticDuration") for number, name in enumerate(_DURATIONS, 1)},
    "InferBatchStatistics": {
        "batch_size": (1, "uint64"),
        "compute_input": (2, "StatisticDuration"),
        "compute_infer": (3, "StatisticDuration"),
        "compute_output": (4, "StatisticDuration"),
    },
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    # Inference.
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "inputs": (5, "*ModelInferRequest.InferInputTensor"),
        "outputs": (6, "*ModelInferRequest.InferRequestedOutputTensor"),
        "raw_input_contents": (7, "*bytes"),
    },
    "ModelInferRequest.InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "*int64"),
        "parameters": (4, "{InferParameter}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "{InferParameter}")},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "outputs": (5, "*ModelInferResponse.InferOutputTensor"),
        "raw_output_contents": (6, "*bytes"),
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "*int64"),
        "parameters": (4, "{InferParameter}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelStreamInferResponse": {"error_message": (1, "string"), "infer_response": (2, "ModelInferResponse")},
    "InferParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "double_param": (4, "double"),
        "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "*bool"),
        "int_contents": (2, "*int32"),
        "int64_contents": (3, "*int64"),
        "uint_contents": (4, "*uint32"),
        "uint64_contents": (5, "*uint64"),
        "fp32_contents": (6, "*float"),
        "fp64_contents": (7, "*double"),
        "bytes_contents": (8, "*bytes"),
    },
    # The repository.
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "RepositoryIndexResponse": {"models": (1, "*RepositoryIndexResponse.ModelIndex")},
    "RepositoryIndexResponse.ModelIndex": {**_RELEASE, "state": (3, "string"), "reason": (4, "string")},
    "RepositoryModelLoadRequest": {"repository_name": (1, "string"), "model_name": (2, "string"), **_PARAMETERS},
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {"repository_name": (1, "string"), "model_name": (2, "string"), **_PARAMETERS},
    "RepositoryModelUnloadResponse": {},
    "ModelRepositoryParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "bytes_param": (4, "bytes"),
    },
    # Shared memory.
    "SystemSharedMemoryStatusRequest": _NAMED,
    "SystemSharedMemoryStatusResponse": {"regions": (1, "{SystemSharedMemoryStatusResponse.RegionStatus}")},
    "SystemSharedMemoryStatusResponse.RegionStatus": {
        "name": (1, "string"),
        "key": (2, "string"),
        "offset": (3, "uint64"),
        "byte_size": (4, "uint64"),
    },
    "SystemSharedMemoryRegisterRequest": {
        "name": (1, "string"),
        "key": (2, "string"),
        "offset": (3, "uint64"),
        "byte_size": (4, "uint64"),
    },
    "SystemSharedMemoryRegisterResponse": {},
    "SystemSharedMemoryUnregisterRequest": _NAMED,
    "SystemSharedMemoryUnregisterResponse": {},
    "CudaSharedMemoryStatusRequest": _NAMED,
    "CudaSharedMemoryStatusResponse": {"regions": (1, "{CudaSharedMemoryStatusResponse.RegionStatus}")},
    "CudaSharedMemoryStatusResponse.RegionStatus": {
        "name": (1, "string"),
        "device_id": (2, "uint64"),
        "byte_size": (3, "uint64"),
    },
    "CudaSharedMemoryRegisterRequest": {
        "name": (1, "string"),
        "raw_handle": (2, "bytes"),
        "device_id": (3, "int64"),
        "byte_size": (4, "uint64"),
    },
    "CudaSharedMemoryRegisterResponse": {},
    "CudaSharedMemoryUnregisterRequest": _NAMED,
    "CudaSharedMemoryUnregisterResponse": {},
}

ENUMS: Mapping[str, tuple[str, ...]] = {
    "DataType": (
        "TYPE_INVALID",
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_UINT16",
        "TYPE_UINT32",
        "TYPE_UINT64",
        "TYPE_INT8",
        "TYPE_INT16",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_FP32",
        "TYPE_FP64",
        "TYPE_STRING",
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU"),
}
"""Names of the values, which are counted from 0."""

CHOICES: Mapping[str, str] = {"InferParameter": "parameter_choice", "ModelRepositoryParameter": "parameter_choice"}
"""Messages of which one field is set, and what that choice is called."""


class Method(NamedTuple):
    """One procedure of the service."""

    request: str
    response: str
    streams: bool = False
    """Both ways."""


METHODS: Mapping[str, Method] = {
    **{
        name: Method(f"{name}Request", f"{name}Response")
        for name in (
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "ModelInfer",
            "RepositoryIndex",
            "RepositoryModelLoad",
            "RepositoryModelUnload",
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
        )
    },
    "ModelStreamInfer": Method("ModelInferRequest", "ModelStreamInferResponse", streams=True),
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: _Field.Type.Value(f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def _classes() -> Mapping[str, Message]:
    file = descriptor_pb2.FileDescriptorProto(name="muster/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Message] = {}
    for name in MESSAGES:  # What is within another stands after it.
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
    for name, values in ENUMS.items():
        outer, _, inner = name.rpartition(".")
        enum = (made[outer] if outer else file).enum_type.add(name=inner)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        if name in CHOICES:
            made[name].oneof_decl.add(name=CHOICES[name])
        for field, (number, kind) in fields.items():
            _declare(made[name], name, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return MappingProxyType(
        {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}
    )


def _declare(message: Message, name: str, field: str, number: int, kind: str) -> None:
    repeated = kind[0] in "*{"
    declared = message.field.add(
        name=field, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    if name in CHOICES:
        declared.oneof_index = 0
    if kind[0] == "{":
        entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _declare(entry, f"{name}.{entry.name}", "key", 1, "string")
        _declare(entry, f"{name}.{entry.name}", "value", 2, kind[1:-1])
        kind = f"*{name}.{entry.name}"
    kind = kind.lstrip("*")
    if kind in _SCALARS:
        declared.type = _SCALARS[kind]
    else:
        declared.type = _Field.TYPE_ENUM if kind in ENUMS else _Field.TYPE_MESSAGE
        declared.type_name = f".{PACKAGE}.{kind}"


CLASSES: Mapping[str, Message] = _classes()
"""The class of each message, by name."""
