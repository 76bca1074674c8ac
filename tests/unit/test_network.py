"""The network's components: shapes, what may reach what, and the compute budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from insync.ensemble.spec import (
    CHANNELS,
    FEATURE_HEIGHT,
    FEATURE_WIDTH,
    IDENTITY,
    MODELS,
    MOUTH,
    POSE,
    REFERENCES,
    SEEN_CHANNELS,
    SPEECH,
    STYLE,
)
from insync.network import mask
from insync.network.adaat import adaat
from insync.network.discriminators import Discriminator, global_view, local_view
from insync.network.model import DecoderGraph, EncoderGraph, LipSync, MixerGraph, ReferenceGraph, parameters_mb
from insync.network.mouth_reader import MouthReader
from insync.network.syncnet import MOUTH_FRAMES, SyncNet

BATCH = 2
GRAPHS: dict[str, type[nn.Module]] = {
    "lipsync_encoder": EncoderGraph,
    "lipsync_reference": ReferenceGraph,
    "lipsync_mixer": MixerGraph,
    "lipsync_decoder": DecoderGraph,
}


@pytest.fixture(scope="module")
def network() -> LipSync:
    torch.manual_seed(0)
    return LipSync().eval()


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_graphs_keep_the_specification(network: LipSync, name: str) -> None:
    model = MODELS[name]
    outputs = GRAPHS[name](network)(*(torch.rand(BATCH, *tensor.shape) for tensor in model.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape[1:]) for output in outputs] == [tensor.shape for tensor in model.outputs]
    assert [output.dtype for output in outputs] == [
        torch.uint8 if tensor.dtype == "UINT8" else torch.float32 for tensor in model.outputs
    ]


@torch.no_grad()
def test_what_the_mouth_shows_cannot_reach_the_colours(network: LipSync) -> None:
    hidden = torch.zeros(1, 1, 256, 256)
    hidden[..., :128] = 1  # the left half speaks, the right one is hair, say
    hole = mask.hole() * hidden
    first = torch.rand(1, 3, 256, 256)
    second = first * (1 - hole) + torch.rand(1, 3, 256, 256) * hole
    (a, pose_a), (b, pose_b) = network.source(first, hidden), network.source(second, hidden)
    assert torch.equal(pose_a, pose_b)
    assert torch.equal(a[:, :SEEN_CHANNELS], b[:, :SEEN_CHANNELS])
    assert not torch.equal(a[:, SEEN_CHANNELS:], b[:, SEEN_CHANNELS:])  # the occlusion branch does see it
    beside = first.clone()
    beside[..., 186, 160] = 1 - beside[..., 186, 160]  # inside the ellipse, but not hidden
    assert not torch.equal(network.source(beside, hidden)[0][:, :SEEN_CHANNELS], a[:, :SEEN_CHANNELS])
    aligned, style = torch.rand(1, CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH), torch.rand(1, STYLE)
    assert torch.equal(network.inpainter(a, aligned, style)[0], network.inpainter(b, aligned, style)[0])


@torch.no_grad()
def test_patch_is_transparent_outside_the_hole(network: LipSync) -> None:
    source, _ = network.source(torch.rand(1, 3, 256, 256))
    patch = DecoderGraph(network)(source, torch.rand(1, CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH), torch.rand(1, STYLE))
    alpha = patch[0, :, :, 3]
    hole = mask.hole()[0, 0] > 0
    assert int(alpha[~hole].max()) == 0
    assert int(alpha[int(mask.CENTRE[1]), int(mask.CENTRE[0])]) > 200
    rows, columns = torch.nonzero(hole, as_tuple=True)
    assert mask.ROWS[0] <= int(rows.min()) <= int(rows.max()) < mask.ROWS[1]
    assert mask.COLUMNS[0] <= int(columns.min()) <= int(columns.max()) < mask.COLUMNS[1]


def test_identity_begins_with_the_references_codes(network: LipSync) -> None:
    codes = torch.rand(1, REFERENCES, MOUTH)
    with torch.no_grad():
        _, identity = network.reference(torch.rand(1, REFERENCES, 3, 256, 256), codes)
    assert torch.equal(identity[:, : REFERENCES * MOUTH], codes.flatten(1))


@torch.no_grad()
def test_frames_of_a_batch_do_not_touch_each_other(network: LipSync) -> None:
    crops, mel = torch.rand(3, 3, 256, 256), torch.rand(3, 80, 40)
    together = EncoderGraph(network)(crops, mel)
    alone = EncoderGraph(network)(crops[1:2], mel[1:2])
    for whole, single in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_adaat_identity_and_quarter_turn() -> None:
    plane = torch.rand(1, 2, 64, 64)
    affine = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [1.0, torch.pi / 2, 0.0, 0.0]]])
    warped = adaat(plane, affine)
    torch.testing.assert_close(warped[:, 0], plane[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(warped[:, 1], torch.rot90(plane[:, 1], 1, (1, 2)), rtol=0, atol=1e-4)


@torch.no_grad()
def test_compute_and_size_budget(network: LipSync) -> None:
    reference, identity = torch.rand(1, CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH), torch.rand(1, IDENTITY)
    with FlopCounterMode(display=False) as counter:
        network.render(torch.rand(1, 3, 256, 256), reference, identity, network.code(torch.rand(1, 80, 40)))
    assert counter.get_total_flops() <= 10e9
    assert parameters_mb(network) <= 16


def _learns(module: nn.Module, loss: Tensor) -> None:
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_training_networks_take_gradients() -> None:
    crop, window = torch.rand(BATCH, 3, 256, 256), torch.rand(BATCH, 3, 144, 160)
    mouth, face = local_view(window), global_view(crop, window)
    assert mouth.shape == (BATCH, 3, 112, 112)
    assert face.shape == (BATCH, 3, 128, 128)
    for view in (mouth, face):
        critic = Discriminator()
        score, maps = critic(view, torch.rand(BATCH, MOUTH))
        assert len(maps) == 4
        _learns(critic, score.mean())
    reader = MouthReader()
    read, _ = reader(mouth)
    assert read.shape == (BATCH, MOUTH)
    _learns(reader, read.square().mean())


def test_global_view_puts_the_window_into_the_crop() -> None:
    crop = torch.zeros(1, 3, 256, 256)
    face = global_view(crop, torch.ones(1, 3, 144, 160))[0, 0]
    inside = torch.zeros(128, 128)
    inside[mask.ROWS[0] // 2 : mask.ROWS[1] // 2, mask.COLUMNS[0] // 2 : mask.COLUMNS[1] // 2] = 1
    assert torch.equal(face, inside)


def test_syncnet_towers_meet_on_one_sphere() -> None:
    syncnet = SyncNet()
    picture, sound = syncnet(torch.rand(4, 3 * MOUTH_FRAMES, 56, 56), torch.rand(4, 80, 40))
    for vector in (picture, sound):
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(4))
    _learns(syncnet, (picture * sound).sum())


def test_descriptor_sizes(network: LipSync) -> None:
    with torch.no_grad():
        _, pose, speech = EncoderGraph(network)(torch.rand(1, 3, 256, 256), torch.rand(1, 80, 40))
    assert (pose.shape[1], speech.shape[1]) == (POSE, SPEECH)
