"""The twin store: one folder for each registered person, readable with any image viewer and text editor.

`<store>/<id>/crops.png` holds the reference crops side by side, `<store>/<id>/twin.json` the rest. Features are not
stored: they depend on the current weights, and the server computes them when it first uses a twin.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput, NotFound, StorageError
from insync.core.images import encode_png
from insync.core.spec import CANARY, CROP_SIZE, MOUTH, NEUTRAL, REFERENCE_PLACES, REFERENCES, TWIN_LENGTH

ID_FORM = f"{TWIN_LENGTH} hexadecimal digits, as registration returned them"
_ID = re.compile(rf"[0-9a-f]{{{TWIN_LENGTH}}}")
_VERSION = 2  # of the format of twin.json
_MADE, _GONE = ".tmp", ".gone"  # suffixes of folders of twins that are being saved or deleted
_ABANDONED_S = 600  # age after which an unfinished twin is deleted; saving takes less


@dataclass(frozen=True)
class Record:
    """The result of registering a person.

    Attributes:
        crops: uint8 [5, 256, 256, 3], RGB reference crops.
        codes: float32 [5, MOUTH], their mouth codes.
        places: float32 [5, 73, 2], their landmarks in the patch's window; see `insync.core.head`.
        neutral: float32 [L, 2], the resting mouth shape.
        report: what was used and why, JSON-serialisable.
    """

    crops: NDArray[np.uint8]
    codes: NDArray[np.float32]
    places: NDArray[np.float32]
    neutral: NDArray[np.float32]
    report: dict[str, Any]


def canary_record() -> Record:
    """Return the record of the canary twin: grey crops without a face, for probes."""
    return Record(
        np.full((REFERENCES, CROP_SIZE, CROP_SIZE, 3), 128, np.uint8),
        np.zeros((REFERENCES, MOUTH), np.float32),
        np.zeros(REFERENCE_PLACES.shape, np.float32),
        np.zeros(NEUTRAL.shape, np.float32),
        {"references": [], "warnings": ["canary"]},
    )


@dataclass(frozen=True)
class Entry:
    """One entry of the store's list: `created` is in UTC, ISO 8601."""

    id: str
    created: str
    report: dict[str, Any]


@dataclass(frozen=True)
class Twin:
    """A stored twin."""

    id: str
    created: str
    record: Record


class TwinStore:
    """Twins in a folder. Any number of processes may share one folder: twins are saved and deleted atomically.

    Args:
        folder: created when the first twin is saved, readable only by its owner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, record: Record) -> str:
        """Store a twin.

        Returns:
            Its id, 128 random bits: it cannot be guessed.

        Raises:
            BadInput: a part of the record has the wrong shape.
            StorageError: the disk is full, or the folder cannot be written.
        """
        shape = (REFERENCES, CROP_SIZE, CROP_SIZE, 3)
        if record.crops.shape != shape or record.crops.dtype != np.uint8:
            raise BadInput(f"crops are {record.crops.dtype} {list(record.crops.shape)}, must be uint8 {list(shape)}")
        if record.codes.shape != (REFERENCES, MOUTH) or not np.isfinite(record.codes).all():
            raise BadInput(f"codes have shape {list(record.codes.shape)}, must be finite [{REFERENCES}, {MOUTH}]")
        if record.places.shape != REFERENCE_PLACES.shape or not np.isfinite(record.places).all():
            raise BadInput(
                f"places have shape {list(record.places.shape)}, must be finite {list(REFERENCE_PLACES.shape)}"
            )
        twin = secrets.token_hex(TWIN_LENGTH // 2)
        made = self.folder / f".{twin}{_MADE}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.mkdir(mode=0o700)
            strip = np.ascontiguousarray(record.crops.transpose(1, 0, 2, 3).reshape(CROP_SIZE, -1, 3))
            (made / "crops.png").write_bytes(encode_png(strip))
            content = {
                "version": _VERSION,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "codes": record.codes.tolist(),
                "places": record.places.tolist(),
                "neutral": record.neutral.tolist(),
                "report": record.report,
            }
            (made / "twin.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            made.rename(self.folder / twin)
        except BaseException as exc:  # an interrupt must not leave a partial twin either
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(exc, OSError):
                raise StorageError(f"the twin store cannot be written: {exc.strerror}; nothing was stored") from exc
            raise
        return twin

    def load(self, twin: str) -> Twin:
        """Read a twin.

        Raises:
            NotFound: there is no twin with this id, the text is not a valid id, or its files are damaged.
        """
        folder = self._folder(twin)
        content = _content(folder, twin)
        strip = cv2.imread(str(folder / "crops.png"), cv2.IMREAD_COLOR)
        if strip is None or strip.shape != (CROP_SIZE, REFERENCES * CROP_SIZE, 3):
            raise NotFound(f"twin {twin} is damaged: crops.png is not readable, register the person again")
        crops = (
            cv2.cvtColor(strip, cv2.COLOR_BGR2RGB).reshape(CROP_SIZE, REFERENCES, CROP_SIZE, 3).transpose(1, 0, 2, 3)
        )
        return Twin(
            twin,
            str(content["created"]),
            Record(
                np.ascontiguousarray(crops),
                np.asarray(content["codes"], np.float32).reshape(REFERENCES, MOUTH),
                np.asarray(content["places"], np.float32).reshape(REFERENCE_PLACES.shape),
                np.asarray(content["neutral"], np.float32),
                content["report"],
            ),
        )

    def list(self) -> list[Entry]:
        """List all complete twins, oldest first."""
        if not self.folder.is_dir():
            return []
        entries = []
        for folder in self.folder.iterdir():
            if _ID.fullmatch(folder.name) and (folder / "twin.json").is_file():
                content = _content(folder, folder.name)
                entries.append(Entry(folder.name, str(content["created"]), content["report"]))
        return sorted(entries, key=lambda entry: (entry.created, entry.id))

    def remove(self, twin: str) -> None:
        """Delete a twin: its files are overwritten, then removed. Servers that cache it no longer serve it.

        Overwriting erases the data on disks that write in place. It does not reach copies kept by a file system, a
        solid-state disk or a backup.

        Raises:
            NotFound: there is no twin with this id.
            OSError: its files cannot be removed.
        """
        # Renamed first, so that no reader sees a partial twin.
        gone = self.folder / f".{twin}{_GONE}"
        try:
            self._folder(twin).rename(gone)
        except FileNotFoundError as exc:  # another process deleted it first
            raise NotFound(_unknown(twin)) from exc
        _erase(gone)
        self.finish_removals()

    def finish_removals(self) -> None:
        """Delete the remains of twins that a killed process was saving or deleting."""
        now = time.time()
        for left in (*self.folder.glob(f".*{_GONE}"), *self.folder.glob(f".*{_MADE}")):
            with contextlib.suppress(OSError):  # another process is deleting it now, or has completed it
                if left.suffix == _GONE or now - left.stat().st_mtime > _ABANDONED_S:
                    _erase(left)

    def holds(self, twin: str) -> bool:
        """Return whether there is a twin with this id."""
        return _ID.fullmatch(twin) is not None and (self.folder / twin).is_dir()

    def expect(self, twin: str) -> None:
        """Check that there is a twin with this id; the canary twin always exists.

        Raises:
            NotFound: there is none.
        """
        if twin != CANARY:
            self._folder(twin)

    def _folder(self, twin: str) -> Path:
        # The id is validated before it is used in a path: no ".." and no separator gets there. An invalid id gets the same
        # error as an unknown one, so that callers learn nothing more.
        folder = self.folder / twin if _ID.fullmatch(twin) else None
        if folder is None or not folder.is_dir():
            raise NotFound(_unknown(twin))
        return folder


def digits(twin: str) -> NDArray[np.uint8]:
    """Encode an id, or the canary's name, as models exchange it: uint8 [32], ASCII.

    Raises:
        NotFound: it is not a valid id, so there is no such twin.
    """
    if twin != CANARY and not _ID.fullmatch(twin):
        raise NotFound(_unknown(twin))
    return np.frombuffer(twin.encode(), np.uint8)


def _unknown(twin: str) -> str:
    shown = twin if len(twin) <= 40 else twin[:40] + "…"
    return f"TWIN {shown!r} is not in the twin store: register the person, or check the id ({ID_FORM})"


def _erase(folder: Path) -> None:
    """Overwrite a twin's files and remove them. Another process may be deleting the same ones."""
    with contextlib.suppress(FileNotFoundError):
        for file in list(folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if not file.is_symlink():
                    with file.open("r+b") as opened:
                        left = os.fstat(opened.fileno()).st_size
                        while left > 0:
                            left -= opened.write(bytes(min(left, 2**20)))
                        opened.flush()
                        os.fsync(opened.fileno())
                file.unlink()
        folder.rmdir()


def _content(folder: Path, twin: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise NotFound(f"twin {twin} was saved by another release of InSync: register the person again")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise NotFound(f"twin {twin} is damaged: twin.json is not readable, register the person again") from exc
    return content
