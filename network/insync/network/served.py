"""The served graphs as PyTorch modules, and the loading of a repository's weights into the network."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from insync.network.model import DecoderGraph, EncoderGraph, LipSync, MixerGraph, ReferenceGraph

SERVED_GRAPHS: dict[str, type[nn.Module]] = {
    "lipsync_encoder": EncoderGraph,
    "lipsync_reference": ReferenceGraph,
    "lipsync_mixer": MixerGraph,
    "lipsync_decoder": DecoderGraph,
}


class ParityError(RuntimeError):
    """An exported graph's outputs differ from the network's."""


def read_weights(repository: Path, without: tuple[str, ...] = ()) -> LipSync:
    """Load the network with the weights that the repository serves.

    Args:
        repository: the model repository.
        without: prefixes of weights that are left as they were initialized.

    The exporter folds batch normalisation into the convolution before it; the loaded network stays folded.

    Raises:
        FileNotFoundError: a graph is missing.
        ParityError: a weight is missing from the graphs, or has another shape.
    """
    network = LipSync().eval()
    found: dict[str, Tensor] = {}
    for name in SERVED_GRAPHS:
        for initializer in onnx.load(str(repository / name / "1" / "model.onnx")).graph.initializer:
            found[initializer.name] = torch.from_numpy(numpy_helper.to_array(initializer).copy())
    folded = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm1d)}
    for module in folded.values():
        module.running_var.fill_(1 - module.eps)  # type: ignore[union-attr]
    for name, weight in network.state_dict().items():
        if name.rpartition(".")[0] in folded or name.startswith(without):
            continue
        if name not in found or found[name].shape != weight.shape:
            raise ParityError(
                f"{name} {tuple(weight.shape)} is not in the graphs: were they exported from another network?"
            )
        weight.copy_(found[name])
    return network
