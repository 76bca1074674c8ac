"""`insync twin`: register, list, show and delete people."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from insync.cli.options import add_server, add_tls_options, tls_options
from insync.core.errors import InsyncError, UnwritableMedia, missing_extra

__all__ = ["add_twin"]


def add_twin(commands: Any) -> None:
    """Add the command."""
    twin = commands.add_parser("twin", help="register, list, show and delete people")
    actions = twin.add_subparsers(title="actions", required=True, metavar="ACTION")

    create = actions.add_parser(
        "create",
        help="register the person in videos or photos",
        description="Register the person in videos or photos, and print the new twin's id.",
    )
    create.add_argument("sources", metavar="FILE", type=Path, nargs="+", help="a video or photo of the person")
    add_server(create)
    create.set_defaults(run=_twin_create)

    for name, function, text in (
        ("list", _twin_list, "list the people registered on this machine"),
        ("show", _twin_show, "write a picture of a person's reference crops"),
        ("rm", _twin_rm, "delete a registered person"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name != "list":
            action.add_argument("twin", metavar="ID", help="id that 'insync twin create' printed")
        if name == "rm":
            action.add_argument(
                "--server", metavar="HOST:PORT", help="delete from this server's twin store (default: this machine's)"
            )
            add_tls_options(action)
        if name == "show":
            action.add_argument(
                "-o", "--out", metavar="PNG", type=Path, help="output (default: ID.png in the current folder)"
            )
        action.add_argument("--twins", metavar="FOLDER", type=Path, help="twin store (default: $INSYNC_TWINS)")
        action.add_argument("--debug", action="store_true", help="show tracebacks")
        action.set_defaults(run=function)


def _twin_create(options: argparse.Namespace) -> int:
    """Register a person, and print the id."""
    import itertools
    from contextlib import nullcontext

    from insync.cli.embedded import embedded_server
    from insync.client.client import Client, Twin

    try:
        from insync.client.dub import registration_pictures
        from insync.client.media.reader import VideoFile
    except ImportError as exc:
        raise missing_extra("media", exc) from exc
    videos = [VideoFile(path) for path in options.sources]

    async def register(address: str) -> Twin:
        async with Client(address, tls=tls_options(options, options.server)) as client:
            return await client.register(itertools.chain.from_iterable(registration_pictures(v) for v in videos))

    with nullcontext(options.server) if options.server is not None else embedded_server() as address:
        print(asyncio.run(register(address)))  # noqa: T201
    return 0


def _store(options: argparse.Namespace) -> Any:
    """Open this machine's twin store."""
    try:
        from insync.core import settings
        from insync.ensemble.models.twin_store import TwinStore
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    return TwinStore(options.twins or settings.load().twins)


def _twin_list(options: argparse.Namespace) -> int:
    """Print the id and date of each twin."""
    for entry in _store(options).list():
        print(f"{entry.id}  {entry.created}")  # noqa: T201
    return 0


def _twin_show(options: argparse.Namespace) -> int:
    """Write a picture of a twin's reference crops."""
    try:
        import cv2

        from insync.ensemble.models.registration import contact_sheet
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    twin = _store(options).load(options.twin)
    out = options.out or Path(f"{options.twin}.png")
    try:
        written = cv2.imwrite(str(out), cv2.cvtColor(contact_sheet(twin), cv2.COLOR_RGB2BGR))
    except cv2.error as exc:
        raise UnwritableMedia(f"{out}: no picture format has this extension; use .png") from exc
    if not written:
        raise UnwritableMedia(f"{out}: cannot be written")
    print(out)  # noqa: T201
    return 0


def _twin_rm(options: argparse.Namespace) -> int:
    """Delete a twin."""
    if options.server is None and tls_options(options, options.server) is None:
        try:
            _store(options).remove(options.twin)
        except OSError as exc:
            raise InsyncError(f"{options.twin} cannot be deleted: {exc.strerror}") from exc
        return 0
    from insync.client.client import Client

    async def delete() -> None:
        async with Client(options.server, tls=tls_options(options, options.server)) as client:
            await client.delete(options.twin)

    asyncio.run(delete())
    return 0
