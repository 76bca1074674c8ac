"""The connection's messages equal Triton's, and a malformed response is a clear error."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2  # type: ignore[import-untyped]
from tests.support.fake_triton import Speaker, serving
from tritonclient.grpc import service_pb2

from insync.client.transport import open_inference_pb2
from insync.client.transport.triton import TritonConnection
from insync.core.errors import ProtocolError
from insync.core.spec import MODELS, Tensor

TENSORS = (Tensor("NUMBERS", "FP32", (-1,)), Tensor("OCTETS", "UINT8", (-1,)), Tensor("TEXTS", "STRING", (-1,)))


def described(message: Any) -> descriptor_pb2.DescriptorProto:
    found = descriptor_pb2.DescriptorProto()
    message.CopyToProto(found)
    return found


def subset(ours: descriptor_pb2.DescriptorProto, theirs: descriptor_pb2.DescriptorProto) -> None:
    numbers = {field.name: (field.number, field.type, field.label) for field in theirs.field}
    for field in ours.field:
        assert numbers[field.name] == (field.number, field.type, field.label), field.name
    nested = {message.name: message for message in theirs.nested_type}
    for message in ours.nested_type:
        subset(message, nested[message.name])


def test_every_message_equals_tritons() -> None:
    """Compare names, numbers, types and labels of all fields with tritonclient's descriptor."""
    ours, theirs = open_inference_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR
    assert len(ours.message_types_by_name) == 4
    for name, message in ours.message_types_by_name.items():
        subset(described(message), described(theirs.message_types_by_name[name]))


class Echo(Speaker):
    """Responses with the inputs as outputs; each tensor's name, type and shape is recorded."""

    def ModelInfer(self, request: Any, context: Any) -> Any:
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(raw)
        self.change(response)
        return response


async def call(address: str, arrays: dict[str, Any], tensors: tuple[Tensor, ...] = TENSORS) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    connection = TritonConnection(host, int(port))
    try:
        return await connection.infer("echo", tensors, arrays, 5)
    finally:
        await connection.close()


def test_tensors_make_a_round_trip() -> None:
    sent: dict[str, Any] = {
        "NUMBERS": np.array([[0.5, -1e30, np.inf]], np.float32),
        "OCTETS": np.arange(256, dtype=np.uint8)[None],
        "TEXTS": np.array([b"", "grüße".encode(), b"\0" * 300], np.object_),
    }
    with serving(Echo()) as (address, _):
        received = asyncio.run(call(address, sent))
        assert set(asyncio.run(call(address, {"OCTETS": sent["OCTETS"]}))) == {
            "OCTETS"
        }  # what is not given is not sent
    assert set(received) == set(sent)
    for name, array in sent.items():
        np.testing.assert_array_equal(received[name], array)
        assert received[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda response: response.raw_output_contents.pop(), "1 outputs and the data of 0"),
        (lambda response: response.outputs[0].shape.append(7), "is malformed"),
        (lambda response: setattr(response.outputs[0], "datatype", "INT64"), "data type is INT64"),
        (lambda response: response.raw_output_contents.__setitem__(0, b"abc"), "is malformed"),
    ],
    ids=["no data", "shape", "type", "length"],
)
def test_malformed_responses_are_one_clear_error(change: Any, text: str) -> None:
    echo = Echo()
    echo.change = change
    with serving(echo) as (address, _), pytest.raises(ProtocolError, match=text):
        asyncio.run(call(address, {"NUMBERS": np.zeros(3, np.float32)}))


def test_the_specification_needs_no_other_data_type() -> None:
    assert {t.dtype for model in MODELS.values() for t in (*model.inputs, *model.outputs)} <= {
        "UINT8",
        "FP32",
        "STRING",
    }
