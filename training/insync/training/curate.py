"""Turns footage into a training set: face-aligned crops, pose-free mouth shapes and log-mel windows, segment by segment.

The data set is a folder: `crops.u8` (uint8 [N, 256, 256, 3], RGB, raw), `frames.npz` (one row per frame), `segments.json` (one entry
for each unbroken stretch of one face) and, once computed, `mouth_basis.npz`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from insync.ensemble.face import Face, FaceFinder, take_crop
from insync.ensemble.mel import LogMel
from insync.ensemble.mouth import skull_fixed
from insync.training.dataset import Segment
from insync.training.sound import read_speech, windows

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

MIN_SEGMENT_FRAMES = 20
MAX_UPSCALE = 2.1  # crop pixels for one pixel of the footage
YAW_RANGE = (0.24, 0.76)  # where the nose lies between the cheeks, as a share of the face's width
CUT_DIFFERENCE = 28.0  # mean absolute difference of consecutive upper-face crops, of 255
CLIP_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".mpg", ".avi")


def _usable(face: Face) -> bool:
    left, right, nose = (face.landmarks[i, 0] for i in (234, 454, 4))
    yaw = (nose - left) / max(right - left, 1e-6)
    scale = float(np.hypot(*face.transform[:, 0]))
    return scale <= MAX_UPSCALE and YAW_RANGE[0] < yaw < YAW_RANGE[1]


def curate(folder: Path, out: Path, face_models: Path, rigid: Floats) -> None:
    """Curates every clip of a folder into a data set.

    Args:
        folder: clips; files of other kinds are passed over, unreadable ones are logged and skipped.
        out: the data set's folder; clips that it already holds are not done again.
        face_models: folder of the face networks.
        rigid: float32 [R, 3], the mean face's rigid points (`MouthBasis.rigid`).
    """
    out.mkdir(parents=True, exist_ok=True)
    finder, log_mel = FaceFinder(face_models, threads=2), LogMel()
    parts = out / "parts"
    parts.mkdir(exist_ok=True)
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in CLIP_ENDINGS)
    for path in tqdm(clips, desc="curate", unit="clip"):
        if (parts / f"{path.stem}.npz").exists():
            continue
        try:
            _curate_clip(path, parts, finder, log_mel, rigid)
        except (av.FFmpegError, ValueError) as error:
            log.warning("%s: skipped, %s", path.name, error)
    _join(parts, out)


def _curate_clip(path: Path, parts: Path, finder: FaceFinder, log_mel: LogMel, rigid: Floats) -> None:
    crops: list[npt.NDArray[np.uint8]] = []
    rows: dict[str, list[Any]] = {"time_s": [], "landmarks": [], "skull": [], "segment": []}
    segment, previous, hint = 0, None, None
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or 25)
        for frame in container.decode(video=0):
            face = finder.find(frame.to_ndarray(format="rgb24"), hint)
            hint = None if face is None else face.box
            if face is None or not _usable(face):
                segment, previous = segment + 1, None
                continue
            crop = take_crop(frame.to_ndarray(format="rgb24"), face.transform)
            upper = crop[:120:4, ::4].astype(np.float32)
            if previous is not None and float(np.abs(upper - previous).mean()) > CUT_DIFFERENCE:
                segment += 1
            previous = upper
            homogeneous = np.c_[face.landmarks[:, :2], np.ones(len(face.landmarks))]
            crops.append(crop)
            rows["time_s"].append(float(frame.time or 0.0))
            rows["landmarks"].append(homogeneous @ face.transform.T)
            rows["skull"].append(skull_fixed(face.landmarks, rigid)[:, :2])
            rows["segment"].append(segment)
    kept = np.array(rows["segment"], int)
    long_enough = np.array([np.count_nonzero(kept == s) >= MIN_SEGMENT_FRAMES for s in kept], bool)
    index = np.flatnonzero(long_enough)
    times = np.array(rows["time_s"], np.float32)[index]
    audio = read_speech(path)
    mel = (
        np.zeros((len(index), 80, 40), np.float16)
        if audio is None
        else log_mel(windows(audio, times)).astype(np.float16)
    )
    with open(parts / f"{path.stem}.u8", "wb") as sink:
        for i in index:
            sink.write(crops[i].tobytes())
    np.savez(
        parts / f"{path.stem}.npz",
        time_s=times,
        landmarks=np.array(rows["landmarks"], np.float32)[index],
        skull=np.array(rows["skull"], np.float32)[index],
        segment=kept[index],
        mel=mel,
        audio=np.zeros(0, np.float32) if audio is None else audio,
        fps=fps,
        clip=path.name,
    )


def _join(parts: Path, out: Path) -> None:
    segments: list[Segment] = []
    columns: dict[str, list[Any]] = {"time_s": [], "landmarks": [], "skull": [], "mel": [], "segment": []}
    start = 0
    with open(out / "crops.u8", "wb") as sink:
        for path in sorted(parts.glob("*.npz")):
            with np.load(path) as part:
                if len(part["time_s"]) == 0:
                    continue
                sink.write(path.with_suffix(".u8").read_bytes())
                for name in ("time_s", "landmarks", "skull", "mel"):
                    columns[name].append(part[name])
                for number in np.unique(part["segment"]):
                    frames = int(np.count_nonzero(part["segment"] == number))
                    columns["segment"].append(np.full(frames, len(segments)))
                    segments.append(
                        Segment(str(part["clip"]), start, frames, float(part["fps"]), part["audio"].size > 0)
                    )
                    start += frames
    np.savez(out / "frames.npz", **{name: np.concatenate(values) for name, values in columns.items()})
    (out / "segments.json").write_text(json.dumps([asdict(segment) for segment in segments], indent=1))
    log.info("%d frames in %d segments", start, len(segments))
