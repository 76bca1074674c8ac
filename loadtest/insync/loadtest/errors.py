"""Errors of the load test itself. Errors that its simulated users receive are counted instead of raised."""

from __future__ import annotations

from insync.core.errors import InsyncError

__all__ = ["LoadTestError"]


class LoadTestError(InsyncError):
    """An error that ends the load test: an invalid option, no server, or a load process that died."""
