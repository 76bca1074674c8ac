"""Does SyncNet find by how much sound is off? `python -m benchmarks.training.syncnet_offsets CLIPS`.

Every clip's longest stretch of one face is judged with its sound as it is. Then pieces of it are judged with the sound moved by known
amounts, which are no whole frames, and the offset that is found is held against the clip's own plus the amount. The clips have to be
strangers to SyncNet: none of them may have been trained on.
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
MAX_SHIFT_S = 0.4  # either way
WITHIN = 1  # frames of the whole number that is nearest to the truth


@dataclass(frozen=True)
class Take:
    """A stretch of one face: mouths uint8 [N, 56, 56], times float32 [N] in seconds, sound float32 [samples] at 16 kHz."""

    clip: str
    mouths: npt.NDArray[np.uint8]
    times_s: Floats
    sound: Floats


def take_of(path: Path, scratch: Path, finder: FaceFinder, visibility: Visibility, rigid: Floats) -> Take | None:
    """The longest usable stretch of a clip; None without sound or face."""
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


def moved(sound: Floats, seconds: float) -> Floats:
    """The sound, heard that much later, or earlier."""
    samples = round(seconds * SAMPLE_RATE_HZ)
    return np.pad(sound, (samples, 0)) if samples >= 0 else sound[-samples:]


def misses(take: Take, judge: SyncJudge, own: SyncMetrics, length_s: float, rng: np.random.Generator) -> list[int]:
    """By how many frames the offset found misses, for random pieces and shifts; empty where the take is shorter."""
    span = float(take.times_s[-1] - take.times_s[0])
    if span < length_s:
        return []
    result = []
    for _ in range(DRAWS):
        start = take.times_s[0] + rng.uniform(0, span - length_s)
        rows = (take.times_s >= start) & (take.times_s <= start + length_s)
        shift = float(rng.uniform(-MAX_SHIFT_S, MAX_SHIFT_S))
        found = judge.metrics_of_mouths(take.mouths[rows], take.times_s[rows], moved(take.sound, shift))
        if found is not None:
            result.append(abs(found.offset - round(own.offset + shift / FRAME_S)))
    return result


def main() -> int:
    """Runs the benchmark; returns the exit code."""
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
                found = misses(take, judge, own, length, rng)
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
        options.out, "Does SyncNet find by how much sound is off?", "python -m benchmarks.training.syncnet_offsets CLIPS",
        [
            "None of these clips was trained on. *Own offset*: found for the clip as it is, in frames of 40 ms, positive where the sound "
            f"trails. Then: share of {DRAWS} pieces of 1, 2 and 4 s, their sound moved by a random amount of up to ±{MAX_SHIFT_S * 1000:.0f} ms, for which "
            "the whole frame found lies within ±1 frame of the nearest to the amount plus the clip's own offset. Where a clip's own offset is unknown to "
            f"SyncNet (confidence below {threshold:g}), so is the truth that its pieces are held against. Curation believes a "
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
