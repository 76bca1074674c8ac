"""The curation pipeline, which turns footage into a data set: `insync curate FOLDER -o DATASET`.

The data set is a folder:

    manifest.parquet   one row for each segment, dropped ones included, with the reason; see `insync.training.data.manifest`
    report.html        the manifest as a page with pictures
    frames.npz         one row for each stored frame: time_s, landmarks, skull, segment, mel, mel_offset_s, jpeg_start, jpeg_size
    segments.json      the stored segments and their rows
    parts/             a processed part for each clip: crops as JPEG, audio, measurements; a finished part is not recomputed

No crop of a face is deleted here: the manifest selects what training uses, and its decisions can be overruled by hand.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from insync.core.mouth import POINTS, aperture
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.face import FaceFinder
from insync.ensemble.models.log_mel import LogMel
from insync.training.curation.audio_quality import music_share, silence_share, voice_share
from insync.training.curation.clip import ABSENT, GOOD, Part, Run, Visibility, is_done, make_part, read_part
from insync.training.curation.identities import Looks, cluster_people, copies, looks, split_of
from insync.training.curation.quality import Gates, clip_metrics, picture_faults, sound_verdict
from insync.training.curation.report import write_report
from insync.training.data.audio import read_speech, windows
from insync.training.data.crops import decode
from insync.training.data.manifest import FILE, Row, carry_over, read_manifest, write_manifest
from insync.training.data.segments import PARTS, Segment, part_path
from insync.training.metrics.sync import WEIGHTS, SyncJudge, mouths_of

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

CLIP_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".mpg", ".avi")
FLICKER_FRAMES = 8  # runs up to this length between unusable runs of the same scene are merged with these
MUSIC_AROUND_S = 4.0  # the audio around shorter segments is included in their share of music
EMPTY = Run("", 0, 0, 0.0, 0.0, 0, 0)
MEASURED = ("time_s", "landmarks", "skull", "jpeg_start", "jpeg_size")


def curate(folder: Path, out: Path, face_models: Path, rigid: Floats, gates: Gates | None = None) -> list[Row]:
    """Curate every clip of a folder into a data set, and resume an interrupted run.

    Args:
        folder: folder of clips; other files are ignored, a clip that cannot be read gets a row in the manifest with the reason.
        out: the data set's folder; clips that it already contains are not read again, and clips that are no longer in `folder` are
            removed from it.
        face_models: folder of the face networks in the model repository.
        rigid: float32 [R, 3], the mean face's rigid points (`MouthBasis.rigid`).
        gates: thresholds.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: the folder does not exist, or has no clip in it.
        ValueError: the existing manifest is not valid.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.name}: no such folder")
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in CLIP_ENDINGS)
    if not clips:
        raise FileNotFoundError(f"no clip in {folder.name}; file names must end in {', '.join(CLIP_ENDINGS)}")
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    before = read_manifest(out / FILE, older=True) if (out / FILE).exists() else []
    undone = [path for path in clips if not is_done(path, out)]
    if undone:
        finder, visibility = FaceFinder(face_models, threads=2), Visibility(face_models.parents[1])
        bar = tqdm(clips, desc="curate", unit="clip", initial=len(clips) - len(undone))
        bar.iterable = undone
        for path in bar:
            bar.set_postfix_str(path.name)
            make_part(path, out, finder, visibility, rigid)
    return assemble(out, [path.name for path in clips], gates or Gates(), before)


def assemble(out: Path, clips: Iterable[str], gates: Gates, before: list[Row]) -> list[Row]:
    """Combine the parts of clips into the data set, judge every segment, and write the manifest and the report; see `curate`."""
    judge = SyncJudge() if WEIGHTS.exists() else None
    log_mel = LogMel()
    rows: list[Row] = []
    seen: list[Looks] = []
    segments: list[Segment] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*MEASURED, "mel", "mel_offset_s", "segment")}
    earlier = {row.segment: row for row in before}
    for clip in tqdm(list(clips), desc="judge", unit="clip"):
        part = read_part(out, clip)
        found = _segments(out, part, gates, judge, seen)
        of_clip = clip_metrics([row for row, _ in found if row.keep])
        for row, run in found:
            row = sound_verdict(row, of_clip, gates)
            rows.append(row)
            if not row.stored:
                continue
            frames = slice(run.first, run.first + run.stored)
            times = part.columns["time_s"][frames]
            known = earlier.get(row.segment)
            offset = row.offset_s if known is None or known.overrule_offset_s is None else known.overrule_offset_s
            for name in MEASURED:
                columns[name].append(part.columns[name][frames])
            mel = np.zeros((run.stored, 80, 40), np.float16)
            if part.audio is not None:
                mel[:] = log_mel(windows(part.audio, times + np.float32(offset)))
            columns["mel"].append(mel)
            columns["mel_offset_s"].append(np.full(run.stored, offset, np.float32))
            columns["segment"].append(np.full(run.stored, len(segments)))
            start = segments[-1].start + segments[-1].frames if segments else 0
            segments.append(Segment(clip, start, run.stored, part.fps, part.audio is not None))
    rows = carry_over(_with_people(rows, seen, gates), before)
    if segments:
        with open(out / "frames.part", "wb") as sink:
            np.savez(sink, **{name: np.concatenate(values) for name, values in columns.items()})
        os.replace(out / "frames.part", out / "frames.npz")
    (out / "segments.json").write_text(json.dumps([asdict(segment) for segment in segments], indent=1))
    write_manifest(rows, out / FILE)
    write_report(rows, out)
    kept = [row for row in rows if row.kept]
    log.info(
        "%d segments, %d kept (%.1f minutes), %d of them with usable speech; report: %s", len(rows), len(kept),
        sum(row.frames / max(row.fps, 1) for row in kept) / 60, sum(row.spoken for row in rows), out / "report.html",
    )  # fmt: skip
    return rows


def _segments(out: Path, part: Part, gates: Gates, judge: SyncJudge | None, seen: list[Looks]) -> list[tuple[Row, Run]]:
    """Return the rows of a clip with their runs, before audio is judged; append the looks of stored segments to `seen`."""
    if not part.runs:
        return [(Row(part.clip, part.clip, reason=part.error or "no frames"), EMPTY)]
    curves = _SyncCache(out, part, judge)
    data = part_path(out, part.clip, ".jpgs").read_bytes()
    found = []
    for run in _joined(part.runs):
        row = _measured(part, run)
        frames = slice(run.first, run.first + run.stored)
        if row.stored:
            starts, sizes = part.columns["jpeg_start"][frames], part.columns["jpeg_size"][frames]
            crops = np.stack([decode(data[a : a + n]) for a, n in zip(starts, sizes, strict=True)])
            skulls = part.columns["skull"][frames]
            apertures = np.array([aperture(points) for points in skulls[:, list(POINTS)]], np.float32)
            seen.append(looks(row.segment, crops, skulls, apertures))
        faults = picture_faults(row, run.verdict, gates)
        row = replace(row, keep=row.stored and not faults, reason="; ".join(faults))
        if row.keep and part.audio is not None:
            row = replace(row, curve=curves.curve(row.segment, crops, part.columns["time_s"][frames]))
        if part.error:
            row = replace(row, reason="; ".join(filter(None, (row.reason, f"the clip ends early: {part.error}"))))
        found.append((row, run))
    curves.save()
    return found


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Merge short runs between unusable runs of one scene, so that a hand in front of the face is one row and not twenty."""
    result: list[Run] = []
    for run in runs:
        last = result[-1] if result else None
        if (
            last is not None
            and last.scene == run.scene
            and (run.verdict != GOOD or run.frames <= FLICKER_FRAMES)
            and (last.verdict != GOOD or last.frames <= FLICKER_FRAMES)
        ):
            worse = max(last, run, key=lambda one: (one.verdict != GOOD, one.frames))
            result[-1] = replace(
                last, verdict=worse.verdict, stored=last.stored + run.stored, end_s=run.end_s,
                frames=last.frames + run.frames,
            )  # fmt: skip
        else:
            result.append(run)
    return result


def _measured(part: Part, run: Run) -> Row:
    """Return the row of a run with its measurements."""
    columns = part.columns
    frames = slice(run.first, run.first + run.stored)

    def middle(name: str) -> float:
        """Return the median of a column; 0 without stored frames."""
        return float(np.median(columns[name][frames])) if run.stored else 0.0

    visible = columns["visible"][frames]
    visible = visible[np.isfinite(visible)]
    sound, around = _audio_of(part, run, 0.0), _audio_of(part, run, MUSIC_AROUND_S)
    return Row(
        segment=f"{part.clip}@{run.start_s:.2f}", clip=part.clip, start_s=round(run.start_s, 3), end_s=round(run.end_s, 3),
        frames=run.frames, fps=part.fps,
        stored=run.stored == run.frames and run.frames > 0 and run.verdict != ABSENT,
        face_px=middle("eyes_px"), sharpness=middle("sharpness"), yaw=middle("yaw"), pitch=middle("pitch"),
        visible=float(np.percentile(visible, 10)) if len(visible) else 1.0,
        has_sound=part.audio is not None, silence=silence_share(sound), voice=voice_share(sound),
        music=music_share(around),
    )  # fmt: skip


def _audio_of(part: Part, run: Run, at_least_s: float) -> Floats:
    """Return the audio of a run, extended on both sides to a length of `at_least_s`."""
    if part.audio is None:
        return np.zeros(0, np.float32)
    begin, end = run.start_s, run.end_s + 1 / max(part.fps, 1)
    margin_s = max(0.0, (at_least_s - (end - begin)) / 2)
    first, last = (max(0, round(time_s * SAMPLE_RATE_HZ)) for time_s in (begin - margin_s, end + margin_s))
    return part.audio[first:last]


def _with_people(rows: list[Row], seen: list[Looks], gates: Gates) -> list[Row]:
    """Return the rows with their person and split, and with duplicates dropped."""
    place = {one.name: number for number, one in enumerate(seen)}
    fit = [one for row in rows if row.keep and (one := seen[place[row.segment]])]
    people = dict(zip((one.name for one in fit), cluster_people(fit), strict=True))
    clip_of = {row.segment: row.clip for row in rows}
    first: dict[str, str] = {}
    for name, person in people.items():
        first.setdefault(person, clip_of[name])
    twice = {fit[i].name: fit[k].name for i, k in copies(fit).items()}
    result = []
    for row in rows:
        person = people.get(row.segment, "")
        row = replace(row, person=person, split=split_of(first[person], gates.held_out) if person else "train")
        if row.segment in twice:
            row = replace(row, duplicate_of=twice[row.segment], keep=False, speaks=False)
            row = replace(row, reason="; ".join(picture_faults(row, GOOD, gates)))
        result.append(row)
    return result


class _SyncCache:
    """A cache of SyncNet's offset curves of a clip's segments, valid for one set of weights."""

    def __init__(self, out: Path, part: Part, judge: SyncJudge | None) -> None:
        self._path, self._part, self._judge = part_path(out, part.clip, ".sync.json"), part, judge
        self._weights = zlib.crc32(WEIGHTS.read_bytes()) if judge is not None else 0
        self._curves: dict[str, list[float]] = {}
        self._new = False
        try:
            document = json.loads(self._path.read_text())
            newer = self._path.stat().st_mtime >= part_path(out, part.clip, ".json").stat().st_mtime
            if document["weights"] == self._weights and newer:
                self._curves = document["curves"]
        except (OSError, ValueError, KeyError):
            pass

    def curve(self, segment: str, crops: npt.NDArray[np.uint8], times_s: Floats) -> tuple[float, ...]:
        """Return the offset curve of a segment; empty if it cannot be measured."""
        if segment not in self._curves and self._judge is not None and self._part.audio is not None:
            metrics = self._judge.metrics_of_mouths(mouths_of(crops), times_s, self._part.audio)
            self._curves[segment] = [] if metrics is None else [round(float(v), 5) for v in metrics.curve]
            self._new = True
        return tuple(self._curves.get(segment, ()))

    def save(self) -> None:
        """Write the cache if it has changed."""
        if self._new:
            self._path.write_text(json.dumps({"weights": self._weights, "curves": self._curves}))


__all__ = ["CLIP_ENDINGS", "Segment", "assemble", "curate", "read_speech", "windows"]
