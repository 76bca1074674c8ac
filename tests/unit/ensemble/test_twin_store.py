"""The twin store."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from insync.core.errors import BadInput, NotFound, StorageError
from insync.core.spec import CANARY, CROP_SIZE, MOUTH, REFERENCE_PLACES, REFERENCES
from insync.ensemble.models.twin_features import FeatureCache, Features
from insync.ensemble.models.twin_store import Record, TwinStore, canary_record, digits


def record(seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    return Record(
        rng.integers(0, 256, (REFERENCES, CROP_SIZE, CROP_SIZE, 3), np.uint8),
        rng.standard_normal((REFERENCES, MOUTH)).astype(np.float32),
        rng.standard_normal(REFERENCE_PLACES.shape).astype(np.float32),
        rng.standard_normal((44, 2)).astype(np.float32),
        {"frames": 7, "references": [], "warnings": ["the face is small"]},
    )


@pytest.fixture
def store(tmp_path: Path) -> TwinStore:
    return TwinStore(tmp_path / "deep" / "twins")


def test_what_is_saved_is_loaded(store: TwinStore) -> None:
    saved = record()
    twin = store.load(store.save(saved))
    np.testing.assert_array_equal(twin.record.crops, saved.crops)
    np.testing.assert_array_equal(twin.record.codes, saved.codes)
    np.testing.assert_array_equal(twin.record.places, saved.places)
    np.testing.assert_array_equal(twin.record.neutral, saved.neutral)
    assert twin.record.report == saved.report


def test_ids_are_long_and_never_twice(store: TwinStore) -> None:
    ids = {store.save(record()) for _ in range(3)}
    assert len(ids) == 3
    assert all(len(twin) == 32 and int(twin, 16) >= 0 for twin in ids)


def test_a_disk_that_takes_no_more(store: TwinStore) -> None:
    """A limit on file sizes, at which writes fail like on a full disk: only the first part fits."""
    kept = store.save(record())
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="the twin store cannot be written: File too large; nothing was stored"):
            store.save(record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in store.folder.iterdir()] == [kept]
    assert len(store.save(record(1))) == 32


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        TwinStore(tmp_path / "file" / "twins").save(record())


def test_list_and_remove(store: TwinStore) -> None:
    assert store.list() == []
    ids = {store.save(record(seed)) for seed in range(2)}
    assert {entry.id for entry in store.list()} == ids
    gone = ids.pop()
    assert store.holds(gone)
    store.remove(gone)
    assert not store.holds(gone)
    assert {entry.id for entry in store.list()} == ids
    with pytest.raises(NotFound, match="not in the twin store"):
        store.load(gone)
    with pytest.raises(NotFound, match="not in the twin store"):
        store.remove(gone)


@pytest.mark.parametrize(
    "twin", ["", "..", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n", "ü" * 500]
)
def test_an_invalid_id_never_reaches_the_file_system(store: TwinStore, twin: str) -> None:
    with pytest.raises(NotFound, match="32 hexadecimal digits"):
        store.load(twin)
    with pytest.raises(NotFound, match="32 hexadecimal digits"):
        store.remove(twin)
    assert not store.holds(twin)


def test_an_interrupted_save_leaves_nothing(store: TwinStore) -> None:
    broken = dataclasses.replace(record(), report={"not": {1, 2}})  # a set is not JSON
    with pytest.raises(TypeError):
        store.save(broken)
    assert list(store.folder.iterdir()) == []


def test_records_of_a_wrong_shape_are_refused(store: TwinStore) -> None:
    with pytest.raises(BadInput, match=r"crops are uint8 \[2, 256, 256, 3\], must be uint8 \[5, 256, 256, 3\]"):
        store.save(dataclasses.replace(record(), crops=record().crops[:2]))
    with pytest.raises(BadInput, match=r"codes have shape .*, must be finite \[5,"):
        store.save(dataclasses.replace(record(), codes=np.full((REFERENCES, MOUTH), np.nan, np.float32)))


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"version": 99}), "{}"])
def test_a_damaged_twin_is_reported(store: TwinStore, damage: str) -> None:
    twin = store.save(record())
    (store.folder / twin / "twin.json").write_text(damage)
    with pytest.raises(NotFound, match="register the person again"):
        store.load(twin)


def test_a_twin_without_its_picture_is_reported(store: TwinStore) -> None:
    twin = store.save(record())
    (store.folder / twin / "crops.png").unlink()
    with pytest.raises(NotFound, match=r"crops\.png"):
        store.load(twin)


def test_only_the_owner_may_look(store: TwinStore) -> None:
    twin = store.save(record())
    assert store.folder.stat().st_mode & 0o077 == 0
    assert (store.folder / twin).stat().st_mode & 0o077 == 0


def test_readers_never_see_half_a_twin(store: TwinStore) -> None:
    done = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                for entry in store.list():
                    store.load(entry.id)
            except Exception as error:  # noqa: BLE001  handed to the test
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(6):
        store.save(record(seed))
    done.set()
    reader.join()
    assert errors == []


def test_an_invalid_id_gets_the_same_error_as_an_unknown_one(store: TwinStore) -> None:
    store.save(record())

    def message(twin: str) -> str:
        with pytest.raises(NotFound) as caught:
            store.load(twin)
        return str(caught.value).replace(repr(twin), "…")

    assert len({message(twin) for twin in ("0" * 32, "", "..", "twins", "0" * 33, ".")}) == 1


def test_a_removed_twins_files_are_overwritten_first(store: TwinStore) -> None:
    twin = store.save(record())
    with (
        (store.folder / twin / "crops.png").open("rb", buffering=0) as picture,
        (store.folder / twin / "twin.json").open("rb", buffering=0) as text,
    ):
        assert picture.read(4) == b"\x89PNG"
        store.remove(twin)
        for file in (picture, text):
            file.seek(0)
            content = file.read()
            assert content
            assert not any(content)
    assert list(store.folder.iterdir()) == []


def test_interrupted_deletions_and_saves_are_cleaned_up(store: TwinStore) -> None:
    kept, gone, half, fresh = (store.save(record(seed)) for seed in range(4))
    (store.folder / gone).rename(store.folder / f".{gone}.gone")
    (store.folder / half).rename(store.folder / f".{half}.tmp")
    (store.folder / fresh).rename(store.folder / f".{fresh}.tmp")
    os.utime(store.folder / f".{half}.tmp", (1, 1))
    store.finish_removals()
    assert {path.name for path in store.folder.iterdir()} == {kept, f".{fresh}.tmp"}


def test_features_of_a_removed_twin_are_not_served_and_leave_memory(store: TwinStore) -> None:
    computed = []

    def compute(made: Record) -> Features:
        computed.append(made)
        return {"CODES": made.codes}

    cache = FeatureCache(store, 2, compute)
    first, second, third = (store.save(record(seed)) for seed in range(3))
    np.testing.assert_array_equal(cache.get(first)["CODES"], record(0).codes)
    cache.get(first)
    assert (cache.hits, cache.misses) == (1, 1)
    assert len(computed) == 1
    store.remove(first)
    with pytest.raises(NotFound, match="not in the twin store"):
        cache.get(first)
    assert len(cache) == 0
    for twin in (second, third, second, store.save(record(4))):
        cache.get(twin)
    assert len(computed) == 4
    cache.get(second)  # used later than the third, which was dropped
    assert (len(cache), len(computed)) == (2, 4)
    store.remove(second)
    cache.sweep()
    assert len(cache) == 1


def test_the_canary_is_served_without_a_store(store: TwinStore) -> None:
    cache = FeatureCache(store, 2, lambda made: {"CROPS": made.crops})
    for _ in range(2):
        np.testing.assert_array_equal(cache.get(bytes(digits(CANARY)).decode())["CROPS"], canary_record().crops)
        cache.sweep()
    assert (cache.hits, cache.misses) == (1, 1)
    assert not store.holds(CANARY)
    assert not store.folder.exists()
    with pytest.raises(NotFound, match="not in the twin store"):
        store.remove(CANARY)


def test_deleted_twins_leave_memory_without_look_ups(store: TwinStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insync.ensemble.models.twin_features.SWEEP_S", 0.01)
    cache = FeatureCache(store, 2, lambda made: {"CODES": made.codes})
    cache.open()
    try:
        twin = store.save(record())
        cache.get(twin)
        store.remove(twin)
        deadline = time.monotonic() + 20
        while len(cache) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(cache) == 0
    finally:
        cache.close()
