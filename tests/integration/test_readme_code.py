"""README's Python code, run against a real server."""

from __future__ import annotations

import asyncio
import re
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.ensemble.server.embedded import EmbeddedServer

pytestmark = pytest.mark.triton


def test_readme_code_runs(server: EmbeddedServer, root: Path, sample_clip: Path, sample_speech: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code.replace("127.0.0.1:8001", server.grpc_url), "README.md", "exec"), names)
    speak = names["speak"]
    assert callable(speak)

    with av.open(str(sample_clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), 8)]
    with av.open(str(sample_speech)) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
        audio = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    shown: list[NDArray[np.uint8]] = []
    asyncio.run(speak(frames, audio, shown.append))

    assert len(shown) == len(frames)
    for before, after in zip(frames, shown, strict=True):
        assert after.shape == before.shape
        assert after.dtype == np.uint8
        changed = (before != after).any(axis=2)
        assert 0.001 < changed.mean() < 0.25  # only the mouth
        assert not changed[: before.shape[0] // 3].any()
