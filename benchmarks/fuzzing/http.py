"""Malformed HTTP requests, and management requests without the key: two of the classes of `benchmarks.fuzzing.requests`."""

from __future__ import annotations

import json

from numpy.random import Generator

from benchmarks.fuzzing.messages import Call, Http, Kit, Raw, pick

ENSEMBLES = ("lipsync", "lipsync_patch")


def web(rng: Generator, kit: Kit) -> Call:
    """Make a request to the HTTP port: invalid JSON, wrong lengths, paths outside the API."""
    model = str(pick(rng, ENSEMBLES))
    path = f"/v2/models/{model}/infer"
    entry = {"name": "AUDIO", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    choice = int(rng.integers(8))
    if choice == 0:
        return Http("POST", path, rng.bytes(int(rng.integers(0, 500))))
    if choice == 1:
        spoiled = {**entry, str(pick(rng, list(entry))): pick(rng, (None, -1, "x", [], {}, 1e400, [[[]]], 2**70))}
        return Http("POST", path, json.dumps({"inputs": [spoiled]}).encode())
    if choice == 2:
        header = json.dumps(
            {"inputs": [{**entry, "parameters": {"binary_data_size": int(pick(rng, (-1, 0, 16, 2**40)))}}]}
        )
        length = str(pick(rng, (len(header), 0, -1, 10**12, "x")))
        return Http("POST", path, header.encode() + bytes(16), {"Inference-Header-Content-Length": length})
    if choice == 3:
        # At most 200 levels: JSON nested tens of thousands of levels deep is not part of this class.
        return Http("POST", path, b"[" * int(rng.integers(1, 200)))
    if choice == 4:
        found = (
            "/../../etc/passwd",
            "/v2/models/..%2f..%2fetc/infer",
            "/v2/models//infer",
            "/twins",
            "/v2/twins",
            "/%00",
        )
        return Http(str(pick(rng, ("GET", "POST", "PUT", "DELETE"))), str(pick(rng, found)), b"")
    if choice == 5:
        return Http("POST", path, json.dumps({"inputs": []}).encode(), {"Content-Encoding": "gzip"})
    if choice == 6:
        return Http("POST", path, b"{}", {"X-Long": "y" * int(rng.integers(1, 60_000))})
    return Http("POST", path, json.dumps({"inputs": [entry] * int(rng.integers(1, 500))}).encode())


def management(rng: Generator, kit: Kit) -> Call:
    """Make a management request without the admin key, or with a wrong one."""
    paths = (
        ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/lipsync/unload"),
        ("POST", "/v2/repository/models/lipsync/load"), ("GET", "/v2/models/stats"), ("GET", "/v2/logging"),
        ("POST", "/v2/logging"), ("GET", "/v2/trace/setting"), ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"), ("GET", "/v2/cudasharedmemory/status"),
    )  # fmt: skip
    if rng.random() < 0.5:
        method, path = pick(rng, paths)
        key = pick(rng, ({}, {"insync-admin": ""}, {"insync-admin": rng.bytes(32).hex()}))
        return Http(method, path, b'{"key":"/x","offset":0,"byte_size":64}', dict(key))
    methods = (
        "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics", "LogSettings",
        "TraceSetting", "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "CudaSharedMemoryStatus",
    )  # fmt: skip
    return Raw(str(pick(rng, methods)), b"")
