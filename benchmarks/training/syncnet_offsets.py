"""Accuracy of the audio offset that SyncNet estimates: `python -m benchmarks.training.syncnet_offsets CLIPS`.

The offset of every clip's longest stretch with one face is estimated first. Then pieces of it are estimated with the sound shifted by
known amounts, which are not whole frames, and the result is compared with the clip's own offset plus the shift. SyncNet must not
have been trained on any of the clips.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import reports
from insync.core.mouth import MouthBasis
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.face import FaceFinder
from insync.ensemble.repository.locate import default_repository
from insync.network.syncnet import FRAME_S
from insync.training.curation.clip import GOOD, Visibility, make_part, read_part
from insync.training.curation.quality import Gates
from insync.training.data.crops import decode
from insync.training.data.segments import PARTS, part_path
from insync.training.metrics.sync import SyncJudge, SyncMetrics, mouths_of

Floats = npt.NDArray[np.float32]
REPORT = "syncnet_offsets.md"
LENGTHS_S = (1.0, 2.0, 4.0)
DRAWS = 24  # of piece and shift, for each length
MAX_SHIFT_S = 0.4  # earlier or later
WITHIN = 1  # frames from the nearest whole number to the true offset


@dataclass(frozen=True)
class Take:
    """A stretch of one face: mouths uint8 [N, 56, 56], times float32 [N] in seconds, sound float32 [samples] at 16 kHz."""

    clip: str
    mouths: npt.NDArray[np.uint8]
    times_s: Floats
    sound: Floats


def take_of(path: Path, scratch: Path, finder: FaceFinder, visibility: Visibility, rigid: Floats) -> Take | None:
    """Return the longest usable stretch of a clip; None without sound or face."""
    make_part(path, scratch, finder, visibility, rigid)
    part = read_part(scratch, path.name)
    runs = [run for run in part.runs if run.verdict == GOOD]
    if part.audio is None or not runs:
        return None
    run = max(runs, key=lambda one: one.frames)
    rows = slice(run.first, run.first + run.stored)
    data = part_path(scratch, path.name, ".jpgs").read_bytes()
    places = zip(part.columns["jpeg_start"][rows], part.columns["jpeg_size"][rows], strict=True)
    crops = np.stack([decode(data[start : start + size]) for start, size in places])
    return Take(path.name, mouths_of(crops), part.columns["time_s"][rows], part.audio)


def shifted(sound: Floats, seconds: float) -> Floats:
    """Return the sound that much later, or earlier if negative."""
    samples = round(seconds * SAMPLE_RATE_HZ)
    return np.pad(sound, (samples, 0)) if samples >= 0 else sound[-samples:]


def deviations(take: Take, judge: SyncJudge, own: SyncMetrics, length_s: float, rng: np.random.Generator) -> list[int]:
    """Return the error of the estimated offset in frames, for random pieces and shifts; an empty list if the take is shorter."""
    span = float(take.times_s[-1] - take.times_s[0])
    if span < length_s:
        return []
    result = []
    for _ in range(DRAWS):
        start = take.times_s[0] + rng.uniform(0, span - length_s)
        rows = (take.times_s >= start) & (take.times_s <= start + length_s)
        shift = float(rng.uniform(-MAX_SHIFT_S, MAX_SHIFT_S))
        found = judge.metrics_of_mouths(take.mouths[rows], take.times_s[rows], shifted(take.sound, shift))
        if found is not None:
            result.append(abs(found.offset - round(own.offset + shift / FRAME_S)))
    return result


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips that SyncNet has never seen")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / REPORT)
    options = parser.parse_args()
    repository, judge = default_repository(), SyncJudge()
    finder, visibility = FaceFinder(repository / "lipsync_face" / "1", threads=2), Visibility(repository)
    rigid = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz").rigid
    rng, rows, silent = np.random.default_rng(0), [], []
    sure: dict[float, list[int]] = {length: [] for length in LENGTHS_S}
    threshold = Gates().sure_confidence
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / PARTS).mkdir()
        for path in tqdm(sorted(options.clips.iterdir()), unit="clip"):
            take = take_of(path, Path(scratch), finder, visibility, rigid)
            own = None if take is None else judge.metrics_of_mouths(take.mouths, take.times_s, take.sound)
            if take is None or own is None:
                silent.append(path.name)
                continue
            cells = []
            for length in LENGTHS_S:
                found = deviations(take, judge, own, length, rng)
                if own.lse_c >= threshold:
                    sure[length] += found
                cells.append(_share(found))
            rows.append(
                (f"`{path.name}`", f"{own.frames}", f"{own.offset:+d}", f"{own.lse_c:.2f}", f"{own.lse_d:.2f}", *cells)
            )
    if not rows:
        print("no clip has both a face and sound", file=sys.stderr)  # noqa: T201
        return 1
    rows.append(
        (f"**all with LSE-C ≥ {threshold:g}**", "", "", "", "", *(_share(sure[length]) for length in LENGTHS_S))
    )
    header = ("clip", "frames", "own offset", "LSE-C", "LSE-D", *(f"{length:g} s" for length in LENGTHS_S))
    reports.write(
        options.out, "Audio offsets estimated by SyncNet", "python -m benchmarks.training.syncnet_offsets CLIPS",
        [
            "None of these clips was trained on. *Own offset*: estimated for the unchanged clip, in frames of 40 ms, positive where the audio "
            f"lags. Other columns: share of {DRAWS} pieces of 1, 2 and 4 s, their sound shifted by a random amount of up to ±{MAX_SHIFT_S * 1000:.0f} ms, whose "
            "estimate lies within ±1 frame of the whole frame nearest to the shift plus the clip's own offset. Where SyncNet is not sure of a clip's own "
            f"offset (confidence below {threshold:g}), there is no true value to compare its pieces with. Curation uses a "
            f"segment's own offset from {Gates().min_sync_frames} frames on.",
            reports.table(header, rows),
            f"Without a face or sound: {', '.join(silent)}." if silent else "",
        ],
    )  # fmt: skip
    return 0


def _share(found: list[int]) -> str:
    return f"{np.mean(np.array(found) <= WITHIN):.0%}" if found else "–"


if __name__ == "__main__":
    sys.exit(main())
