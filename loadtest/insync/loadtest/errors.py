"""What a load test itself can fail of; what its users suffer is counted instead."""

from __future__ import annotations

from insync.core.errors import InsyncError

__all__ = ["LoadTestError"]


class LoadTestError(InsyncError):
    """The load test cannot go on: a wrong option, no server, or a load process that died."""
