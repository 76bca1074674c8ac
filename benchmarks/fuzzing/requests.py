"""Malformed requests, by class, from a seed: what an untrusted client may send to any served model over any open port.

Every class is a function of a random generator and a `Kit` of well-formed requests that it corrupts. Used by
`benchmarks.fuzzing.run`, and in a short run by the tests.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator

from benchmarks.fuzzing.http import management, web
from benchmarks.fuzzing.messages import (
    EXTREMES,
    LABELS,
    PUBLIC,
    Call,
    Infer,
    Kit,
    Raw,
    Sent,
    Tcp,
    chunk,
    pick,
    png_with,
    request,
    strings,
)
from insync.core import spec

TAKES_PICTURES = ("lipsync_guard", "lipsync_preprocess", "lipsync_frame")  # of `Kit.inner`
TYPES = ("BOOL", "UINT8", "UINT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16", "NONSENSE", "")


def _model(rng: Generator, kit: Kit) -> str:
    return str(pick(rng, PUBLIC if rng.random() < 0.6 else kit.inner))


def _ensemble(rng: Generator) -> str:
    return str(pick(rng, PUBLIC[:2]))


def _spoiled(rng: Generator, kit: Kit, change: Callable[[Sent], Sent]) -> Call:
    model = _model(rng, kit)
    inputs = kit.good(model)
    name = pick(rng, list(inputs))
    return Infer(request(model, {**inputs, name: change(inputs[name])}))


def _framed(rng: Generator, kit: Kit, data: bytes) -> Call:
    """Send a picture to one of the models that take pictures."""
    model = pick(rng, (*PUBLIC, *(name for name in kit.inner if name in TAKES_PICTURES)))
    inputs = kit.good(model)
    if model == "lipsync_twin":
        good = [kit.jpeg] * int(rng.integers(3))
        return Infer(request(model, {"FRAMES": Sent("BYTES", (len(good) + 1,), strings(*good, data))}))
    name = "FRAME" if "FRAME" in inputs else "CHECKED_FRAME"
    return Infer(request(model, {**inputs, name: kit.frame(data)}))


def wrong_type(rng: Generator, kit: Kit) -> Call:
    """Make a request with a wrong data type, with or without the number of bytes that it takes."""
    kind = str(pick(rng, TYPES))
    length = {"BOOL": 1, "UINT8": 1, "UINT16": 2, "FP16": 2, "BF16": 2, "INT64": 8, "FP64": 8}.get(kind, 4)

    def change(sent: Sent) -> Sent:
        fits = rng.random() < 0.5
        return Sent(kind, sent.shape, bytes(int(np.prod(sent.shape)) * length) if fits else sent.data)

    return _spoiled(rng, kit, change)


def wrong_shape(rng: Generator, kit: Kit) -> Call:
    """Make a request with a wrong rank or shape: zero, negative, or with a product beyond 64 bits."""

    def change(sent: Sent) -> Sent:
        shape = list(sent.shape)
        choice = int(rng.integers(6))
        at = int(rng.integers(len(shape)))
        if choice == 0:
            del shape[at]
        elif choice == 1:
            shape.insert(at, int(rng.integers(0, 4)))
        elif choice == 2:
            shape[at] = int(pick(rng, (0, -1, -(2**31), -(2**63), 2**31, 2**32 + 1, 2**62, 2**63 - 1)))
        elif choice == 3:
            shape[at] = max(0, shape[at] + int(rng.integers(-2, 3)))
        elif choice == 4:
            shape = [2**21, 2**21, 2**21, 2**21]
        else:
            shape = shape[::-1]
        return replace(sent, shape=tuple(shape))

    return _spoiled(rng, kit, change)


def tensors(rng: Generator, kit: Kit) -> Call:
    """Make a request with a tensor missing, extra, sent twice, or misnamed."""
    model = _model(rng, kit)
    inputs = kit.good(model)
    name = str(pick(rng, list(inputs)))
    choice = int(rng.integers(5))
    if choice == 0:
        del inputs[name]
    elif choice == 1:
        inputs[pick(rng, ("EXTRA", "", "SYNCED", "frame", "F" * 10_000))] = inputs[name]
    elif choice == 2:
        inputs = {key + ("?" if key == name else ""): value for key, value in inputs.items()}
    elif choice == 3:
        inputs = {}
    made = request(model, inputs)
    if choice == 4:
        made.inputs.append(made.inputs[0])
        made.raw_input_contents.append(made.raw_input_contents[0])
    return Infer(made)


def byte_counts(rng: Generator, kit: Kit) -> Call:
    """Make a request whose contents are shorter, longer, fewer, more, or in another field than the shapes require."""
    model = _model(rng, kit)
    made = request(model, kit.good(model))
    at = int(rng.integers(len(made.inputs)))
    choice = int(rng.integers(6))
    if choice == 0:
        made.raw_input_contents[at] = made.raw_input_contents[at][: int(rng.integers(4))]
    elif choice == 1:
        made.raw_input_contents[at] += bytes(int(rng.integers(1, 5000)))
    elif choice == 2:
        del made.raw_input_contents[at]
    elif choice == 3:
        made.raw_input_contents.append(b"more")
    elif choice == 4:
        made.inputs[at].contents.fp32_contents.extend([1.0] * int(rng.integers(1, 50)))
    else:
        del made.raw_input_contents[:]
        for entry in made.inputs:
            values = pick(rng, ("fp32_contents", "uint_contents", "int64_contents"))
            getattr(entry.contents, values).extend([1] * int(rng.integers(0, 50)))
    return Infer(made)


def string_lengths(rng: Generator, kit: Kit) -> Call:
    """Make a request with strings whose length prefixes are wrong."""
    model = str(pick(rng, (*PUBLIC, "lipsync_guard")))
    name = "FRAMES" if model == "lipsync_twin" else "TWIN"
    value = strings(kit.twin)
    length = pick(rng, (0, 1, 31, 33, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000))
    data = pick(
        rng, (struct.pack("<I", length) + kit.twin, value[:3], value + b"\0", value + value, b"", rng.bytes(36))
    )
    return Infer(request(model, {**kit.good(model), name: Sent("BYTES", kit.good(model)[name].shape, data)}))


def soup(rng: Generator, kit: Kit) -> Call:
    """Make a request with random bytes in place of a picture, some after a valid signature and before a valid end."""
    body = rng.bytes(int(rng.integers(0, 4000)))
    start = pick(rng, (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", kit.jpeg[:400], kit.png[:41], b"GIF89a", b"RIFF"))
    end = pick(rng, (b"", b"\xff\xd9", kit.png[-12:]))
    return _framed(rng, kit, start + body + end)


def truncated(rng: Generator, kit: Kit) -> Call:
    """Make a request with a truncated picture, some with the end marker put back."""
    whole = pick(rng, (kit.jpeg, kit.png, kit.progressive))
    cut = whole[: int(rng.integers(len(whole)))]
    return _framed(rng, kit, cut + (b"" if rng.random() < 0.5 else whole[-2:] if whole is not kit.png else whole[-12:]))


def flipped(rng: Generator, kit: Kit) -> Call:
    """Make a request with a picture in which some bits are flipped, in the header as often as in the pixels."""
    data = bytearray(pick(rng, (kit.jpeg, kit.png, kit.progressive)))
    reach = 700 if rng.random() < 0.5 else len(data)
    for _ in range(int(rng.integers(1, 12))):
        data[int(rng.integers(min(reach, len(data))))] ^= 1 << int(rng.integers(8))
    return _framed(rng, kit, bytes(data))


def bombs(rng: Generator, kit: Kit) -> Call:
    """Make a request with a small file that decodes to a large picture or takes long: wrong sizes, many scans and chunks, high compression."""
    choice = int(rng.integers(9))
    side = int(pick(rng, (5000, 20_000, 65_535, 2**31 - 1, 2**32 - 1)))
    if choice == 0:
        data = png_with(side, side, zlib.compress(bytes(1000)))
    elif choice == 1:
        at = kit.jpeg.index(b"\xff\xc0") + 5
        data = kit.jpeg[:at] + struct.pack(">HH", min(side, 65_535), 65_535) + kit.jpeg[at + 4 :]
    elif choice == 2:
        start = kit.progressive.index(b"\xff\xda")
        data = kit.progressive[:start] + kit.progressive[start : start + 40] * 3000 + b"\xff\xd9"
    elif choice == 3:
        data = png_with(64, 64, zlib.compress(bytes(50_000_000), 9))
    elif choice == 4:
        text = b"k\0\0" + zlib.compress(bytes(50_000_000), 9)
        data = png_with(64, 64, zlib.compress(bytes(65 * 64)), chunk(pick(rng, (b"zTXt", b"iCCP")), text))
    elif choice == 5:
        data = png_with(64, 64, zlib.compress(bytes(65 * 64)), chunk(b"tEXt", b"") * 30_000)
    elif choice == 6:
        data = b"\xff\xd8" + b"\xff" * int(rng.integers(1000, 300_000)) + b"\xd9"
    elif choice == 7:
        data = png_with(int(pick(rng, (0, 1, 15, 2**24))), int(pick(rng, (0, 1, 16))), zlib.compress(b"\0\0"))
    else:
        data = kit.bomb if rng.random() < 0.2 else png_with(4096, 4097, zlib.compress(bytes(100)))
    return _framed(rng, kit, data)


def sound(rng: Generator, kit: Kit) -> Call:
    """Make a request with audio that is not finite, far too loud, or random bytes."""
    model = str(pick(rng, (*PUBLIC[:2], "lipsync_guard")))
    audio = kit.audio.copy()
    choice = int(rng.integers(4))
    if choice == 0:
        audio[int(rng.integers(len(audio)))] = pick(rng, (np.nan, np.inf, -np.inf, 1e30))
    elif choice == 1:
        audio[:] = pick(rng, EXTREMES)
    elif choice == 2:
        audio = audio * np.float32(32768)
    else:
        audio = np.frombuffer(rng.bytes(4 * len(audio)), np.float32)
    sent = Sent("FP32", (1, len(audio)), audio.astype(np.float32).tobytes())
    return Infer(request(model, {**kit.good(model), "AUDIO": sent}))


def ids(rng: Generator, kit: Kit) -> Call:
    """Make a request that uses or deletes a twin by an id that is invalid, unknown, or differs in one digit from a known one."""
    twin = bytearray(kit.twin)
    digits = b"0123456789abcdef"
    near = bytearray(twin)
    at = int(rng.integers(len(near)))
    near[at] = digits[(digits.index(near[at]) + int(rng.integers(1, 16))) % 16]
    value = bytes(
        pick(
            rng,
            (
                near, near, twin.upper() if twin.upper() != twin else near, twin[:-1], twin + b"0", twin + b"\n",
                twin + b"\0", b"./" + twin, twin + b"/", b"." + twin + b".gone", b"", b".", b"..", b"*", b"../../etc/passwd",
                b"/etc/passwd", b"..%2f" * 50, b"\0" * 32, b"\xff\xfe\x80" * 11, rng.bytes(32), b"0" * 32, b"a" * 100_000,
                rng.bytes(16).hex().encode(), "ü".encode() * 16, b"%s%n%x" * 8, b"$(id)", b"'; DROP TABLE twins; --",
            ),
        )
    )  # fmt: skip
    if rng.random() < 0.3:
        return Infer(request("lipsync_twin", {"FORGET": Sent("BYTES", (1,), strings(value))}))
    if rng.random() < 0.3:
        octets = value[: len(twin)].ljust(len(twin), b"0")
        octets = bytes(near) if octets == twin else octets
        return Infer(request("lipsync_twin_features", {"TWIN": Sent("UINT8", (1, len(twin)), octets)}))
    model = _ensemble(rng)
    return Infer(request(model, {**kit.good(model), "TWIN": Sent("BYTES", (1, 1), strings(value))}))


def hints(rng: Generator, kit: Kit) -> Call:
    """Make a request with an invalid face box, or with an invalid name or rate of a live stream."""
    box = np.array([pick(rng, (*EXTREMES, 5.0, 100.0, 319.0)) for _ in range(4)], np.float32)
    sent = {"FACE_HINT": Sent("FP32", (1, 4), box.tobytes())}
    if rng.random() < 0.5:
        rate = np.array([pick(rng, (*EXTREMES, 0.99, 25.0, 240.1))], np.float32)
        name = strings(pick(rng, (*LABELS, rng.bytes(20))))
        sent = {"STREAM": Sent("BYTES", (1, 1), name), "RATE": Sent("FP32", (1, 1), rate.tobytes())}
    model = _ensemble(rng)
    return Infer(request(model, {**kit.good(model), **sent}))


def live_streams(rng: Generator, kit: Kit) -> Call:
    """Make a request of one of many live streams with random names, which request more than the capacity; half of the frames or sounds are malformed."""
    model = str(pick(rng, (*PUBLIC[:2], "lipsync_guard")))
    count = int(pick(rng, (1, 1, 1, 2, 8))) if model == "lipsync_guard" else 1
    rates = np.array([pick(rng, (0.0, 1.0, 5.0, 25.0, 40.0, 240.0)) for _ in range(count)], np.float32)
    labels = [b"stream %d" % rng.integers(100) for _ in range(count)]
    sent = {
        "STREAM": Sent("BYTES", (count, 1), strings(*labels)),
        "RATE": Sent("FP32", (count, 1), rates.tobytes()),
    }
    inputs = kit.good(model)
    if rng.random() < 0.25:
        inputs["FRAME"] = kit.frame(kit.jpeg[: int(rng.integers(len(kit.jpeg)))])
    elif rng.random() < 0.33:
        audio = np.where(rng.random(kit.audio.shape) < 0.01, np.float32(np.nan), kit.audio).astype(np.float32)
        inputs["AUDIO"] = Sent("FP32", (1, *kit.audio.shape), audio.tobytes())
    for name in ("FRAME", "AUDIO", "TWIN"):
        one = inputs[name]
        data = strings(*[kit.twin] * count) if name == "TWIN" else one.data * count
        inputs[name] = Sent(one.datatype, (count, *one.shape[1:]), data)
    inputs.pop("FACE_HINT", None)
    return Infer(request(model, {**inputs, **sent}))


def batches(rng: Generator, kit: Kit) -> Call:
    """Make a request with a batch beyond the limit, of zero, or of different sizes in its tensors."""
    model = _model(rng, kit)
    inputs = kit.good(model)
    count = int(pick(rng, (0, 2, 8, 9, 64, 200)))
    for name, sent in list(inputs.items()):
        own = count if rng.random() < 0.9 else count + 1
        if len(sent.data) * own < 2**24:
            inputs[name] = Sent(sent.datatype, (own, *sent.shape[1:]), sent.data * own)
    return Infer(request(model, inputs))


def names(rng: Generator, kit: Kit) -> Call:
    """Make a request for a model or version that does not exist."""
    good = _model(rng, kit)
    if rng.random() < 0.5:
        # Triton reads "1.0" as 1, which exists.
        version = str(pick(rng, ("0", "2", "-1", "9" * 30, "one", "../1", "\0", "v1")))
        return Infer(request(good, kit.good(good), version))
    model = str(
        pick(rng, ("", "lipsync2", "LIPSYNC", "../lipsync", "lipsync/1", "\0", "l" * 100_000, "lipsync\n", "*"))
    )
    return Infer(request(model, kit.good(good)))


def registrations(rng: Generator, kit: Kit) -> Call:
    """Make a registration without frames, with too many, with frames without a person or strings that are no frames, some with FORGET too."""
    black = bytes(cv2.imencode(".png", np.zeros((32, 32), np.uint8))[1])
    choice = int(rng.integers(6))
    frames = (
        [],
        [b""] * int(rng.integers(1, 400)),
        [kit.jpeg] * 301,
        [black] * int(rng.integers(1, 20)),
        [rng.bytes(int(rng.integers(50))) for _ in range(int(rng.integers(1, 30)))],
        [kit.jpeg, kit.jpeg[:-2]],
    )[choice]
    inputs = {"FRAMES": Sent("BYTES", (len(frames),), strings(*frames))}
    if rng.random() < 0.1:
        inputs["FORGET"] = Sent("BYTES", (1,), strings(b"0" * 32))
    return Infer(request("lipsync_twin", inputs))


def inner(rng: Generator, kit: Kit) -> Call:
    """Make a request with well-formed tensors of extreme values for the models that clients do not call."""
    model = str(pick(rng, kit.inner))
    inputs = kit.good(model)
    for name, sent in inputs.items():
        if rng.random() < 0.3:
            continue
        if sent.datatype == "FP32":
            values = np.frombuffer(sent.data, np.float32).copy()
            if rng.random() < 0.5:
                values[:] = pick(rng, EXTREMES)
            else:
                values[int(rng.integers(len(values)))] = pick(rng, EXTREMES)
            inputs[name] = replace(sent, data=values.tobytes())
        elif name == "IMAGE":
            height, width = (int(pick(rng, (0, 1, 2, 15, 64, 1000))) for _ in range(2))
            inputs[name] = Sent("UINT8", (1, height, width, 3), bytes(height * width * 3))
        elif name == "PATCH":
            inputs[name] = replace(sent, data=rng.bytes(len(sent.data)))
        elif name in ("FRAME", "CHECKED_FRAME"):
            inputs[name] = kit.frame(rng.bytes(int(rng.integers(1, 500))))
    return Infer(request(model, inputs))


def options(rng: Generator, kit: Kit) -> Call:
    """Make a request with unknown outputs, unregistered shared memory, sequences, priorities, timeouts or long names."""
    model = _model(rng, kit)
    made = request(model, kit.good(model))
    choice = int(rng.integers(9))
    if choice == 0:
        made.outputs.add(name=pick(rng, ("NOTHING", "", "FRAME", "N" * 10_000)))
    elif choice == 1:
        for tensor in spec.ALL_MODELS[model].outputs[: int(rng.integers(1, 3))]:
            made.outputs.add(name=tensor.name)
    elif choice == 2:
        output = made.outputs.add(name=spec.ALL_MODELS[model].outputs[0].name)
        output.parameters["classification"].int64_param = int(pick(rng, (-1, 0, 1, 5, 2**40)))
    elif choice == 3:
        side = made.inputs[0] if rng.random() < 0.5 else made.outputs.add(name=spec.ALL_MODELS[model].outputs[0].name)
        side.parameters["shared_memory_region"].string_param = pick(rng, ("", "x", "insync", "../..", "/dev/shm"))
        side.parameters["shared_memory_byte_size"].int64_param = int(pick(rng, (0, -1, 100, 2**62)))
        side.parameters["shared_memory_offset"].int64_param = int(pick(rng, (0, -1, 2**62)))
    elif choice == 4:
        made.parameters["sequence_id"].int64_param = int(rng.integers(-5, 5))
        made.parameters["sequence_start"].bool_param = True
    elif choice == 5:
        made.parameters["priority"].int64_param = int(pick(rng, (-1, 0, 7, 2**40)))
    elif choice == 6:
        made.parameters["timeout"].int64_param = int(pick(rng, (-1, 0, 1, 2**62)))
    elif choice == 7:
        made.id = "i" * int(pick(rng, (1, 1000, 100_000)))
    else:
        for _ in range(int(rng.integers(1, 40))):
            made.parameters[rng.bytes(6).hex()].string_param = "v" * int(rng.integers(200))
        made.parameters[pick(rng, ("triton_enable_empty_final_response", "binary_data_output"))].bool_param = True
    return Infer(made)


def protobuf(rng: Generator, kit: Kit) -> Call:
    """Make a request of bytes that are no protobuf message, or of a message with some bytes changed."""
    method = str(pick(rng, ("ModelInfer", "ModelInfer", "ModelReady", "ModelMetadata", "ServerLive", "ModelConfig")))
    if rng.random() < 0.4:
        return Raw(method, rng.bytes(int(rng.integers(0, 2000))))
    model = _model(rng, kit)
    data = bytearray(request(model, kit.good(model)).SerializeToString())
    reach = 300 if rng.random() < 0.7 else len(data)
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(min(reach, len(data))))] = int(rng.integers(256))
    return Raw(method, bytes(data if rng.random() < 0.8 else data[: int(rng.integers(len(data)))]))


def streams(rng: Generator, kit: Kit) -> Call:
    """Make a stream with malformed messages, or a stream or call that is cancelled before its response."""
    model = _model(rng, kit)
    inputs = kit.good(model)
    if rng.random() < 0.5:
        inputs.pop(str(pick(rng, list(inputs))))
    count = int(rng.integers(0, 5))
    cancel = float(rng.random() * 0.05) if rng.random() < 0.6 else None
    return Infer(request(model, inputs), count, cancel if count or cancel is not None else 0.01)


def connections(rng: Generator, kit: Kit) -> Call:
    """Make a connection that sends half a handshake, half a request, another protocol or noise, and is then closed."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
    post = b"POST /v2/models/lipsync/infer HTTP/1.1\r\nHost: x\r\nContent-Length: "
    data = pick(
        rng,
        (
            preface[: int(rng.integers(len(preface)))],
            preface + rng.bytes(int(rng.integers(1, 2000))),
            preface + struct.pack(">I", int(rng.integers(2**24)))[1:] + rng.bytes(30),
            rng.bytes(int(rng.integers(1, 3000))),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.bytes(200),
            post + b"100000000\r\n\r\n{",
            post + b"-1\r\n\r\n{}",
            post[: int(rng.integers(len(post)))],
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3000,
            b"",
        ),
    )
    return Tcp(str(pick(rng, ("grpc", "http"))), data)


@dataclass(frozen=True)
class Kind:
    """A class of requests.

    Attributes:
        name: in the report.
        make: makes one request of this class.
        share: of all requests.
        harmless: whether some of them may succeed: the change does not matter to the model.
    """

    name: str
    make: Callable[[Generator, Kit], Call]
    share: float
    harmless: bool


KINDS = (
    Kind("wrong data type", wrong_type, 6, True),
    Kind("wrong rank or shape", wrong_shape, 9, True),
    Kind("tensors missing, extra, twice", tensors, 5, True),
    Kind("wrong byte counts", byte_counts, 6, True),
    Kind("wrong string lengths", string_lengths, 5, True),
    Kind("random bytes as a picture", soup, 7, True),
    Kind("truncated JPEG or PNG", truncated, 7, True),
    Kind("bits flipped in JPEG or PNG", flipped, 9, True),
    Kind("decompression bombs", bombs, 3, True),
    Kind("NaN, infinite and huge audio", sound, 6, True),
    Kind("twin ids: traversal, guesses, binary", ids, 7, False),
    Kind("invalid hints, stream names and rates", hints, 6, True),
    Kind("many live streams", live_streams, 6, True),
    Kind("batches beyond limits", batches, 3, True),
    Kind("unknown models and versions", names, 3, False),
    Kind("invalid registrations", registrations, 3, False),
    Kind("extreme values for inner models", inner, 5, True),
    Kind("options: outputs, shared memory, sequences", options, 4, True),
    Kind("protobuf: random and changed bytes", protobuf, 6, True),
    Kind("streams and calls cancelled early", streams, 3, True),
    Kind("connections: incomplete, other protocols", connections, 3, True),
    Kind("HTTP: JSON, lengths, paths", web, 4, False),
    Kind("management without the key", management, 3, False),
)
