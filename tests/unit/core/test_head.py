"""Places of landmarks, and of the same landmarks with another mouth."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from insync.core import spec
from insync.core.head import PLACED, head_of, in_window, places, places_of
from insync.core.mouth import POINTS, MouthBasis


def _basis(repository: Path) -> MouthBasis:
    return MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")


def test_the_outer_edges_of_the_window_are_at_one() -> None:
    corners = np.array([[spec.WINDOW_COLUMNS[0], spec.WINDOW_ROWS[0]], [spec.WINDOW_COLUMNS[1], spec.WINDOW_ROWS[1]]])
    np.testing.assert_allclose(in_window(corners.astype(np.float32) - 0.5), [[-1, -1], [1, 1]], atol=1e-6)


def test_the_same_mouth_has_the_places_that_were_found(sample_clip: Path, repository: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the face finder comes with insync[serve]")
    from insync.ensemble.models.face import FaceFinder

    with av.open(str(sample_clip)) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    face = FaceFinder(repository / "lipsync_face" / "1").find(image)
    assert face is not None
    basis = _basis(repository)
    shape = basis.shape(face.landmarks)
    found = places_of(face.landmarks, face.transform)
    head = head_of(face.landmarks, face.transform, basis.rigid)
    np.testing.assert_allclose(places(head, shape), found, atol=2e-3)
    assert np.abs(found).max() < 1.3
    wider = shape.copy()
    wider[POINTS.index(14), 1] += 0.1  # the lower lip goes down by a tenth of the distance of the eyes
    moved = places(head, wider) - found
    lower = PLACED.index(14)
    assert moved[lower, 1] > 0.1
    assert np.abs(np.delete(moved, lower, 0)).max() < 2e-3


def test_the_face_step_has_the_same_rigid_points(repository: Path) -> None:
    np.testing.assert_array_equal(np.load(repository / "lipsync_face" / "1" / "rigid.npy"), _basis(repository).rigid)
