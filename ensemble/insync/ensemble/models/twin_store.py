"""The twin store: one folder for each registered identity, readable with any viewer and editor.

`<store>/<id>/crops.png` holds the reference crops side by side, `<store>/<id>/twin.json` the rest. Features are not
stored: they belong to the weights of the day, and the server computes them when it first meets a twin.
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
from insync.core.spec import CANARY, CROP_SIZE, MOUTH, NEUTRAL, REFERENCE_PLACES, REFERENCES, TWIN_LENGTH

ID_FORM = f"{TWIN_LENGTH} hexadecimal digits, as registration returned them"
_ID = re.compile(rf"[0-9a-f]{{{TWIN_LENGTH}}}")
_VERSION = 2  # of the layout of twin.json
_MADE, _GONE = ".tmp", ".gone"  # folders of twins that are not yet whole, and no longer
_ABANDONED_S = 600  # making a twin takes less


@dataclass(frozen=True)
class Record:
    """What registration found out about a person.

    Attributes:
        crops: uint8 [5, 256, 256, 3], RGB reference crops.
        codes: float32 [5, MOUTH], their mouth codes.
        places: float32 [5, 73, 2], their landmarks in the patch's window; see `head`.
        neutral: float32 [L, 2], the resting mouth shape.
        report: what was used and why, ready for JSON.
    """

    crops: NDArray[np.uint8]
    codes: NDArray[np.float32]
    places: NDArray[np.float32]
    neutral: NDArray[np.float32]
    report: dict[str, Any]


def canary_record() -> Record:
    """Of a grey nobody, for probes."""
    return Record(
        np.full((REFERENCES, CROP_SIZE, CROP_SIZE, 3), 128, np.uint8),
        np.zeros((REFERENCES, MOUTH), np.float32),
        np.zeros(REFERENCE_PLACES.shape, np.float32),
        np.zeros(NEUTRAL.shape, np.float32),
        {"references": [], "warnings": ["canary"]},
    )


@dataclass(frozen=True)
class Entry:
    """One line of the store's list: `created` is in UTC, ISO 8601."""

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
    """Twins in a folder. Any number of processes may use one folder: twins appear and vanish whole.

    Args:
        folder: made when the first twin is saved, readable by its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, record: Record) -> str:
        """Stores a twin.

        Returns:
            Its id, 128 random bits: who does not know it cannot guess it.

        Raises:
            BadInput: a part of the record has another shape than it must have.
            StorageError: the disk is full, or the folder cannot be written.
        """
        shape = (REFERENCES, CROP_SIZE, CROP_SIZE, 3)
        if record.crops.shape != shape or record.crops.dtype != np.uint8:
            raise BadInput(f"crops are {record.crops.dtype} {list(record.crops.shape)}, expected uint8 {list(shape)}")
        if record.codes.shape != (REFERENCES, MOUTH) or not np.isfinite(record.codes).all():
            raise BadInput(f"codes have shape {list(record.codes.shape)}, expected finite [{REFERENCES}, {MOUTH}]")
        if record.places.shape != REFERENCE_PLACES.shape or not np.isfinite(record.places).all():
            raise BadInput(
                f"places have shape {list(record.places.shape)}, expected finite {list(REFERENCE_PLACES.shape)}"
            )
        twin = secrets.token_hex(TWIN_LENGTH // 2)
        made = self.folder / f".{twin}{_MADE}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.mkdir(mode=0o700)
            strip = np.ascontiguousarray(record.crops.transpose(1, 0, 2, 3).reshape(CROP_SIZE, -1, 3))
            _, png = cv2.imencode(".png", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
            (made / "crops.png").write_bytes(png.tobytes())
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
        except BaseException as exc:  # an interrupt, too, must leave no half twin
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(exc, OSError):
                raise StorageError(f"the twin store cannot be written: {exc.strerror}; nothing was stored") from exc
            raise
        return twin

    def load(self, twin: str) -> Twin:
        """Reads a twin.

        Raises:
            NotFound: there is none of this id, or the text is no id, or its files are damaged.
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
        """All whole twins, oldest first."""
        if not self.folder.is_dir():
            return []
        entries = []
        for folder in self.folder.iterdir():
            if _ID.fullmatch(folder.name) and (folder / "twin.json").is_file():
                content = _content(folder, folder.name)
                entries.append(Entry(folder.name, str(content["created"]), content["report"]))
        return sorted(entries, key=lambda entry: (entry.created, entry.id))

    def remove(self, twin: str) -> None:
        """Deletes a twin: its files are overwritten, then removed. Servers that hold it in memory serve it no more.

        Overwriting reaches the very blocks on a disk that writes in place. Copies that a file system, a solid-state disk
        or a backup keeps are beyond it.

        Raises:
            NotFound: there is none of this id.
            OSError: its files cannot be removed.
        """
        # Renamed first, so that nobody meets half a twin.
        gone = self.folder / f".{twin}{_GONE}"
        try:
            self._folder(twin).rename(gone)
        except FileNotFoundError as exc:  # somebody else was faster
            raise NotFound(_unknown(twin)) from exc
        _erase(gone)
        self.finish_removals()

    def finish_removals(self) -> None:
        """Removes what is left of twins whose removal, or whose making, was cut off: of a process that was killed."""
        now = time.time()
        for left in (*self.folder.glob(f".*{_GONE}"), *self.folder.glob(f".*{_MADE}")):
            with contextlib.suppress(OSError):  # another process finishes it at this moment, or made it whole
                if left.suffix == _GONE or now - left.stat().st_mtime > _ABANDONED_S:
                    _erase(left)

    def holds(self, twin: str) -> bool:
        """Whether there is a twin of this id."""
        return _ID.fullmatch(twin) is not None and (self.folder / twin).is_dir()

    def expect(self, twin: str) -> None:
        """Does nothing where there is a twin of this id; the canary is always there.

        Raises:
            NotFound: there is none.
        """
        if twin != CANARY:
            self._folder(twin)

    def _folder(self, twin: str) -> Path:
        # The form is checked before the name meets the file system: no «..» and no separator gets there. Who asks for
        # something that is no id learns no more than who asks for one that is not there.
        folder = self.folder / twin if _ID.fullmatch(twin) else None
        if folder is None or not folder.is_dir():
            raise NotFound(_unknown(twin))
        return folder


def digits(twin: str) -> NDArray[np.uint8]:
    """An id, or the canary's name, as it goes from model to model: uint8 [32], ASCII.

    Raises:
        NotFound: it is no id, so there is no twin of it.
    """
    if twin != CANARY and not _ID.fullmatch(twin):
        raise NotFound(_unknown(twin))
    return np.frombuffer(twin.encode(), np.uint8)


def _unknown(twin: str) -> str:
    shown = twin if len(twin) <= 40 else twin[:40] + "…"
    return f"TWIN {shown!r} is not in the twin store: register the person, or check the id ({ID_FORM})"


def _erase(folder: Path) -> None:
    """Overwrites a twin's files and removes them. Another process may be at it too."""
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
            raise NotFound(f"twin {twin} was written by another release: register the person again")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise NotFound(f"twin {twin} is damaged: twin.json is not readable, register the person again") from exc
    return content
