"""Loading of a training run's results as one network."""

from __future__ import annotations

from pathlib import Path

import torch

from insync.network.model import LipSync
from insync.training.trainers.run import load_checkpoint

# Prefixes of parameter names.
OCCLUSION_PARTS = ("source.occluder",)
RENDERER_PARTS = ("source", "reference", "alignment", "placing", "inpainter")

# Predictions regress to the mean: on unseen speakers, the predicted aperture varies 0.6 times as much as the real one. Scaling the codes
# restores the aperture_std_ratio, does not change any correlation, and keeps the resting mouth (a code of zeros) at rest.
EXPRESSION = 1.5


def load_network(run: Path) -> LipSync:
    """Load the network of a run folder.

    Raises:
        FileNotFoundError: `speech.pt`, `renderer.pt` or `occlusion.pt` is missing.
    """
    files = {name: load_checkpoint(run / f"{name}.pt") for name in ("speech", "renderer", "occlusion")}
    missing = ", ".join(f"{name}.pt" for name, state in files.items() if state is None)
    speech, renderer, occlusion = files.values()
    if speech is None or renderer is None or occlusion is None:
        raise FileNotFoundError(f"{missing} is not in the run's folder: finish that stage first (insync train --help)")
    network = LipSync()
    network.load_state_dict({**renderer["model"], **speech["model"], **occlusion["model"]})
    last = network.mapping.body[3]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(EXPRESSION)
    return network.eval()
