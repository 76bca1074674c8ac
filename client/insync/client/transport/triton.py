"""One connection to a Triton server, by the Open Inference Protocol (KServe v2) over gRPC.

Uses gRPC directly instead of tritonclient, which adds 50 MB and upper limits on protobuf and grpcio that conflict with apps.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from insync.client.transport import open_inference_pb2 as messages
from insync.client.transport.tls import TlsOptions
from insync.core.errors import ProtocolError
from insync.core.spec import Tensor

__all__ = ["TritonConnection"]

MAX_MESSAGE_BYTES = 64 * 2**20
_SERVICE = "/inference.GRPCInferenceService/"
# Data types of the specification's tensors, except STRING, whose elements are bytes objects.
_DTYPES: dict[str, type[np.generic]] = {"UINT8": np.uint8, "FP32": np.float32}
_LENGTH_BYTES = 4  # little-endian, before each element of a string tensor


class TritonConnection:
    """A channel to one server, opened on first use, for use from one event loop.

    Args:
        host, port: address of the server's gRPC endpoint.
        tls: options of TLS; None connects without TLS.
        credentials: credentials of `tls`, read once for all connections.
    """

    def __init__(
        self, host: str, port: int, tls: TlsOptions | None = None, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        # No keepalive: pings more often than every 300 s make a server close the connection, and a dead server is detected
        # by the request's deadline.
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            # Otherwise a new channel to the same address reuses the old one's connection, even a broken one.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if _is_loopback(host):
            options.append(("grpc.enable_http_proxy", 0))  # the environment's http_proxy does not apply to loopback
        if tls is not None and tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._model_ready = self._channel.unary_unary(
            f"{_SERVICE}ModelReady",
            messages.ModelReadyRequest.SerializeToString,
            messages.ModelReadyResponse.FromString,
        )
        self._model_infer = self._channel.unary_unary(
            f"{_SERVICE}ModelInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelInferResponse.FromString,
        )

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        """Return whether the server has this model, and it is ready.

        Raises:
            grpc.RpcError: gRPC's own error.
        """
        response = await self._model_ready(messages.ModelReadyRequest(name=model), timeout=timeout_s)
        return bool(response.ready)

    async def infer(
        self, model: str, tensors: Iterable[Tensor], arrays: Mapping[str, NDArray[Any]], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Call a model.

        Args:
            model: name of the model.
            tensors: its inputs, as in the specification.
            arrays: the inputs to send, by name, with the batch dimension if the model has one.
            timeout_s: seconds to wait for the response.

        Returns:
            The outputs by name, with the batch dimension, read-only. Elements of a string tensor are bytes.

        Raises:
            grpc.RpcError: gRPC's own error.
            ProtocolError: the response is malformed.
        """
        request = messages.ModelInferRequest(model_name=model)
        for tensor in tensors:
            if tensor.name in arrays:
                array = arrays[tensor.name]
                datatype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
                request.inputs.add(name=tensor.name, datatype=datatype, shape=array.shape)
                request.raw_input_contents.append(_serialized(array, tensor.dtype))
        response = await self._model_infer(request, timeout=timeout_s)
        if len(response.outputs) != len(response.raw_output_contents):
            raise ProtocolError(
                f"{model} answered with {len(response.outputs)} outputs and the data of "
                f"{len(response.raw_output_contents)}: the server may not be Triton"
            )
        try:
            return {
                output.name: _parsed(raw, output.datatype, tuple(output.shape))
                for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
            }
        except ValueError as exc:
            raise ProtocolError(f"{model}'s response is malformed: {exc}") from exc

    async def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        await self._channel.close()


def _serialized(array: NDArray[Any], dtype: str) -> bytes:
    if dtype == "STRING":
        return b"".join(
            len(element).to_bytes(_LENGTH_BYTES, "little") + element for element in map(_octets, array.flat)
        )
    return array.astype(_DTYPES[dtype], copy=False).tobytes()


def _octets(element: Any) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _parsed(raw: bytes, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if datatype == "BYTES":
        elements, at = [], 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
            elements.append(raw[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length])
            at += _LENGTH_BYTES + length
        strings = np.empty(len(elements), np.object_)
        strings[:] = elements
        return strings.reshape(shape)
    if datatype not in _DTYPES:
        raise ValueError(f"its data type is {datatype}")
    return np.frombuffer(raw, _DTYPES[datatype]).reshape(shape)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
