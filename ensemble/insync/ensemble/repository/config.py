"""Reading of the model repository's configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2


def read_config(repository: Path, model: str) -> Any:
    """Parse a model's `config.pbtxt`."""
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())
