"""InSync's own metrics on the server's metrics page."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.ensemble.server.embedded import EmbeddedServer


def metrics(server: EmbeddedServer) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as page:
        text: str = page.read().decode()
        return text


def lookups(server: EmbeddedServer) -> dict[str, float]:
    found = re.findall(r'^insync_twin_lookups\{cache="(\w+)"\} (\S+)$', metrics(server), re.MULTILINE)
    return {cache: float(count) for cache, count in found}


def test_lookups_of_twins_are_counted(server: EmbeddedServer, raw: Any, twin: NDArray[np.object_]) -> None:
    before = lookups(server)
    assert before["miss"] >= 1  # registration has fetched the features of its twin
    for _ in range(3):
        raw("lipsync_twin_features", TWIN=np.frombuffer(twin[0], np.uint8))
    assert lookups(server) == {"hit": before["hit"] + 3, "miss": before["miss"]}
