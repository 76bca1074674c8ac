"""The location of the model repository that is shipped with this package."""

from __future__ import annotations

from pathlib import Path

from insync.core.errors import ServerError


def default_repository() -> Path:
    """Return the model repository that is shipped with this package: in the wheel, or in the checkout.

    Raises:
        ServerError: there is none.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "model_repository", here.parents[4] / "model_repository"):
        if folder.is_dir():
            return folder
    raise ServerError("the model repository is missing from this installation: set its folder with --repository")
