"""A training run's results as one network."""

from __future__ import annotations

from pathlib import Path

from insync.network.model import LipSync
from insync.training.progress import load_checkpoint

SPEECH_PARTS = ("projection", "mapping")
RENDERER_PARTS = ("source", "reference", "alignment", "inpainter")


def load_network(run: Path) -> LipSync:
    """The network of a run folder.

    Raises:
        FileNotFoundError: `speech.pt` or `renderer.pt` is missing.
    """
    speech, renderer = load_checkpoint(run / "speech.pt"), load_checkpoint(run / "renderer.pt")
    if speech is None or renderer is None:
        missing = "speech.pt" if speech is None else "renderer.pt"
        raise FileNotFoundError(
            f"{missing} is not in the run's folder: finish that stage first (python -m insync.training --help)"
        )
    network = LipSync()
    for name in RENDERER_PARTS:
        getattr(network, name).load_state_dict(renderer[name])
    for name in SPEECH_PARTS:
        prefix = name + "."
        state = {key.removeprefix(prefix): value for key, value in speech["model"].items() if key.startswith(prefix)}
        getattr(network, name).load_state_dict(state)
    return network.eval()
