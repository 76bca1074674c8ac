"""Loading of a training run's results as one network."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from insync.network.model import LipSync
from insync.network.served import read_weights
from insync.training.trainers.run import load_checkpoint

log = logging.getLogger(__name__)

# Prefixes of parameter names.
OCCLUSION_PARTS = ("source.occluder",)
RENDERER_PARTS = ("source", "reference", "alignment", "placing", "inpainter")

SPEECH_PARTS = ("projection.", "mapping.")
# In this order: the occlusion branch is a part of the renderer's source encoder.
STAGES = ("speech", "renderer", "occlusion")

# Predictions regress to the mean: on unseen speakers, the predicted aperture varies less than the real one. Scaling the codes
# restores the aperture_std_ratio, does not change any correlation, and keeps the resting mouth (a code of zeros) at rest.
EXPRESSION = 1.5


def load_network(run: Path, served: Path | None = None) -> LipSync:
    """Load the network of a run folder.

    Args:
        run: the run folder.
        served: model repository whose weights are taken for stages that the run has not trained; None allows no such stage.

    Raises:
        FileNotFoundError: `speech.pt`, `renderer.pt` or `occlusion.pt` is missing, or all of them.
        ParityError: the repository's weights have other shapes.
    """
    files = {name: load_checkpoint(run / f"{name}.pt") for name in STAGES}
    missing = [name for name, state in files.items() if state is None]
    if missing and (served is None or len(missing) == len(files)):
        raise FileNotFoundError(
            f"{', '.join(f'{name}.pt' for name in missing)} is not in the run's folder: finish that stage first (insync train --help)"
        )
    own_speech = () if "speech" in missing else SPEECH_PARTS
    network = LipSync() if served is None or not missing else read_weights(served, own_speech)
    state = network.state_dict()
    for known in files.values():
        state |= known["model"] if known is not None else {}
    network.load_state_dict(state)
    if missing:
        log.info("%s: as served", ", ".join(missing))
    if "speech" not in missing:
        last = network.mapping.body[3]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(EXPRESSION)
    return network.eval()
