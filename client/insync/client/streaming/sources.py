"""A uniform reader of the caller's iterables: plain or asynchronous, live or from a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from insync.core.errors import BadInput

__all__ = ["Source"]

_END = object()
_CLOSE_TIMEOUT_S = 1.0


class Source:
    """The items of an iterable, read one by one.

    A plain iterator may block (a camera, a decoder): it runs in its own thread. Sequences and arrays are read in the event
    loop's thread.

    Args:
        items: any Iterable or AsyncIterable.
        name: name of the source in messages: "frames" or "audio".

    Raises:
        BadInput: `items` is not an iterable, or a str or bytes.
    """

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any], name: str) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._plain: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        if isinstance(items, (str, bytes, bytearray)):
            raise BadInput(f"{name} is one {type(items).__name__}; it must be an iterable, plain or asynchronous")
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
        elif isinstance(items, Iterable):
            self._plain = iter(items)
            if not isinstance(items, (list, tuple, np.ndarray)):
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"insync-{name}")
        else:
            raise BadInput(f"{name} is a {type(items).__name__}; it must be an iterable, plain or asynchronous")

    async def next(self) -> tuple[bool, Any]:
        """Return (True, the next item), or (False, None) after the last."""
        if self._async is not None:
            item = await anext(self._async, _END)
        elif self._thread is not None:
            item = await asyncio.get_running_loop().run_in_executor(self._thread, self._step)
        else:
            item = self._step()
        return (False, None) if item is _END else (True, item)

    def _step(self) -> Any:
        assert self._plain is not None
        return next(self._plain, _END)

    async def close(self) -> None:
        """Close the iterator, if it can be closed. If its thread is producing an item, wait for it, but at most 1 s."""
        if self._async is not None:
            closing = getattr(self._async, "aclose", None)
            if closing is not None:
                await closing()
        elif self._thread is not None:
            closing = getattr(self._plain, "close", None)
            if closing is not None:
                done = asyncio.get_running_loop().run_in_executor(self._thread, closing)
                await asyncio.wait({done}, timeout=_CLOSE_TIMEOUT_S)
            self._thread.shutdown(wait=False)
