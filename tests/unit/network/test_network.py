"""The network's components: shapes, hidden inputs, and the compute budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from insync.core import spec
from insync.core.head import places
from insync.core.mouth import INNER_LIPS, OUTER_LIPS, MouthBasis
from insync.core.spec import MODELS, MOUTH, POSE, REFERENCES, SEEN_CHANNELS, SPEECH
from insync.network import mask
from insync.network.adaat import adaat
from insync.network.copying import LIGHT, sampled, taken
from insync.network.discriminators import Discriminator, global_view, local_view
from insync.network.inpainter import FINE
from insync.network.model import DecoderGraph, EncoderGraph, LipSync, MixerGraph, ReferenceGraph, parameters_mb
from insync.network.mouth_reader import MouthReader
from insync.network.placing import NEAR, Flow, Inside, Placing
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


def _random(tensor: spec.Tensor, batch: int = BATCH) -> Tensor:
    values = torch.rand(batch, *tensor.shape)
    return (values * 255).to(torch.uint8) if tensor.dtype == "UINT8" else values


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_graphs_match_the_specification(network: LipSync, name: str) -> None:
    model = MODELS[name]
    outputs = GRAPHS[name](network)(*(_random(tensor) for tensor in model.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape[1:]) for output in outputs] == [tensor.shape for tensor in model.outputs]
    assert [output.dtype for output in outputs] == [
        torch.uint8 if tensor.dtype == "UINT8" else torch.float32 for tensor in model.outputs
    ]


@torch.no_grad()
def test_the_hidden_mouth_cannot_reach_the_colours(network: LipSync) -> None:
    hidden = torch.zeros(1, 1, 256, 256)
    hidden[..., :128] = 1  # the left half speaks, the right one is, for example, hair
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
    others = [torch.rand(1, *tensor.shape) for tensor in MODELS["lipsync_decoder"].inputs[1:]]
    first_painted, second_painted = (network.inpainter(source, *others) for source in (a, b))
    assert torch.equal(first_painted.colours, second_painted.colours)
    assert not torch.equal(first_painted.alpha, second_painted.alpha)


@torch.no_grad()
def test_patch_is_transparent_outside_the_hole(network: LipSync) -> None:
    source, _ = network.source(torch.rand(1, 3, 256, 256))
    patch = DecoderGraph(network)(source, *(_random(tensor, 1) for tensor in MODELS["lipsync_decoder"].inputs[1:]))
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
def test_frames_of_a_batch_are_independent(network: LipSync) -> None:
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
    crop, mel = torch.rand(1, 3, 256, 256), torch.rand(1, 80, 40)
    tensors = (*MODELS["lipsync_twin_features"].outputs[:4], spec.PLACES)
    features = [torch.rand(1, *tensor.shape) for tensor in tensors]
    with FlopCounterMode(display=False) as counter:
        network.render(crop, features[0], features[1], features[2], features[3], features[4], network.code(mel))
    assert counter.get_total_flops() <= 10e9
    assert parameters_mb(network) <= 16


@torch.no_grad()
def test_flow_is_exact_at_landmarks_and_rotates_with_them() -> None:
    flow = Flow()
    places = torch.rand(1, *spec.PLACES.shape) * 1.6 - 0.8
    turn, shift = torch.tensor([[0.9, 0.1], [-0.1, 1.1]]), torch.tensor([0.05, -0.1])
    others = (places @ turn + shift)[:, None].expand(-1, REFERENCES, -1, -1)
    found = flow(places, others)[0, 2].permute(1, 2, 0).reshape(-1, 2)
    error = ((found - (flow.grid[0] @ turn + shift)) * flow.extent).norm(dim=1)
    assert float(error.mean()) < 0.2  # pixels
    nowhere = torch.zeros_like(places)
    assert torch.isfinite(flow(nowhere, nowhere[:, None].expand(-1, REFERENCES, -1, -1))).all()


@torch.no_grad()
def test_positions_stay_exact_in_mixed_precision(network: LipSync) -> None:
    """In bfloat16 the flow divides by spreads that round to 0, and sampling at the resulting positions reads outside the picture."""
    flow, here = Flow(), _random(spec.PLACES)
    there, values = _random(spec.REFERENCE_PLACES), _random(spec.PIXELS).reshape(BATCH, REFERENCES, -1).float()
    chosen = torch.eye(REFERENCES)[:2].expand(BATCH, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, exactly, pixels = here @ here.mT, flow(here, there), taken(chosen, values)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exactly, flow(here, there))
    assert torch.equal(pixels, values[:, :2])


@torch.no_grad()
def test_pixels_are_copied_from_the_given_places(network: LipSync) -> None:
    copying = network.inpainter.copying
    merged, each = torch.rand(1, FINE, *spec.ALIGNED.shape[1:]), torch.rand(1, REFERENCES, 32, *spec.ALIGNED.shape[1:])
    _, height, width = spec.PIXELS.shape
    x = ((2 * torch.arange(width) + 1) / width - 1).expand(height, width)
    y = ((2 * torch.arange(height) + 1) / height - 1)[:, None].expand(height, width)
    ramps = torch.stack([x, y, torch.zeros(height, width)]).repeat(REFERENCES, 1, 1)[None]
    weights = torch.eye(REFERENCES)[:1]  # the first reference alone
    here = torch.rand(1, *spec.PLACES.shape) * 1.6 - 0.8
    there = here[:, None].repeat(1, REFERENCES, 1, 1) + torch.tensor(
        [0.1, 0.0]
    )  # a twentieth of the window further right
    copied, chosen, origin, *_ = copying(merged, each, weights, ramps, there, here)
    light = F.interpolate(copying.colour(F.avg_pool2d(merged, LIGHT)), size=(height, width), mode="bilinear")
    gain, shift = light.chunk(2, dim=1)
    back = (copied - shift) * torch.exp(-gain)
    inside = (slice(None), slice(10, -10), slice(10, -20))
    torch.testing.assert_close(back[0, :2][inside], origin[0, 0][inside], rtol=0, atol=0.02)
    assert chosen[0, 0].tolist() == [1, 0, 0, 0, 0]
    assert float((origin[0, 0, 0] - x).mean()) == pytest.approx(0.1, abs=0.05)


def _mouth(aperture: float) -> Tensor:
    """Places of a mouth 64 pixels wide around the window's centre; `aperture`: pixels between its inner lips in the middle."""
    places = torch.zeros(spec.PLACES.shape)
    turn = torch.pi * (1 + 2 * torch.arange(len(INNER_LIPS)) / len(INNER_LIPS))  # from the left corner around below
    half = torch.tensor([spec.PIXELS.shape[2] / 2, spec.PIXELS.shape[1] / 2])
    inner = torch.stack([32 * torch.cos(turn), -aperture / 2 * torch.sin(turn)], dim=1)
    places[len(OUTER_LIPS) : len(OUTER_LIPS) + len(INNER_LIPS)] = inner / half
    return places


def test_the_inside_is_between_the_lips_and_closed_lips_have_none() -> None:
    wide, closed, half_open = _mouth(30), _mouth(0.5), _mouth(20)
    inside, from_lips, shown = Inside()(wide[None], torch.stack([closed, half_open])[None])
    height, width = inside.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij"
    )
    reach = (columns / 32) ** 2 + (rows / 15) ** 2
    assert float(inside[0, 0][reach < 0.7].min()) == 1
    assert float(inside[0, 0][reach > 1.2].max()) == 0
    middle = slice(width // 2 - 16, width // 2 + 16)
    below, above = from_lips[0][:, :, width // 2] * NEAR
    assert below[height // 2 - 10 : height // 2].tolist() == pytest.approx(
        [5.5 + i for i in range(10)][:7] + [12] * 3, abs=0.7
    )
    assert above.tolist() == pytest.approx(below.flip(0).tolist(), abs=0.01)
    assert float(from_lips[0][..., :20].max()) == -1  # beside the mouth
    assert float(shown[0, 0, 0, middle].max()) < 0.1
    assert float(shown[0, 1, 0, middle].min()) > 0.95
    for lips in (closed, closed * torch.tensor([-1.0, 1.0])):  # as filmed, and mirrored
        assert float(Inside()(lips[None], wide[None, None])[0].max()) < 0.5


@torch.no_grad()
def test_a_mouth_s_inside_that_no_reference_shows_is_generated(network: LipSync) -> None:
    source, aligned, style, pixels, _, _ = (_random(tensor) for tensor in MODELS["lipsync_decoder"].inputs)
    wide = _mouth(30)[None].expand(BATCH, -1, -1)
    kept = [
        network.inpainter(
            source, aligned, style, pixels.float() / 255, _mouth(aperture).expand(BATCH, REFERENCES, -1, -1), wide
        )
        .kept[..., 70:74, 70:90]
        .mean()
        for aperture in (30, 0)
    ]
    assert kept[1] < 0.1 * kept[0]


@torch.no_grad()
def test_places_are_those_of_the_head_with_another_mouth(network: LipSync, repository: Path) -> None:
    basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
    placing = Placing()
    placing.follow(basis)
    rng = np.random.default_rng(0)
    head, code = (rng.standard_normal(shape).astype(np.float32) for shape in (spec.HEAD.shape, (MOUTH,)))
    got = placing(*(torch.from_numpy(value)[None] for value in (head, basis.rest, code)))[0]
    np.testing.assert_allclose(got.numpy(), places(head, basis.decode(code, basis.rest)), atol=1e-5)


def _learns(module: nn.Module, loss: Tensor) -> None:
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_training_networks_have_finite_gradients() -> None:
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


def test_syncnet_towers_give_unit_vectors() -> None:
    syncnet = SyncNet()
    picture, sound = syncnet(torch.rand(4, 3 * MOUTH_FRAMES, 56, 56), torch.rand(4, 80, 40))
    for vector in (picture, sound):
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(4))
    _learns(syncnet, (picture * sound).sum())


def test_descriptor_sizes(network: LipSync) -> None:
    with torch.no_grad():
        _, pose, speech = EncoderGraph(network)(torch.rand(1, 3, 256, 256), torch.rand(1, 80, 40))
    assert (pose.shape[1], speech.shape[1]) == (POSE, SPEECH)


def test_edge_pixels_repeat_outside_the_picture() -> None:
    torch.manual_seed(0)
    pixels, places = torch.rand(2, 3, 9, 16), 3 * torch.randn(2, 2, 20, 30)
    wanted = F.grid_sample(
        pixels, places.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(sampled(pixels, places), wanted, atol=1e-5, rtol=0)
