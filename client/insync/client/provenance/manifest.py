"""The marks of a file as synthetic: a signed C2PA manifest, and a plain metadata tag.

The manifest (C2PA Technical Specification 2) holds a hash of the file, so that changes are detected. The tag is one line in
the container's comment, for players and for formats that cannot hold a manifest. Both name IPTC's digital source type.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import av
import av.error

from insync.client.provenance.certificates import local_authority, local_identity
from insync.core import settings
from insync.core.errors import UnreadableMedia

__all__ = ["Mark", "State", "Verdict", "can_be_signed", "mark_as_synthetic", "metadata_tag", "read_mark"]

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# The picture comes from a camera, the mouth from a model.
SOURCE_TYPE = f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia"
_SYNTHETIC = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
_TAGGED = re.compile(re.escape(_VOCABULARY) + r"(\w+)")
_MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
MEMORY_MB = 32  # c2pa's memory for a file that is being signed; larger ones go to a temporary file
_VALID = ("Valid", "Trusted")  # c2pa's states of a manifest that matches its file


class Mark(Enum):
    """The mark of a written file."""

    SIGNED = "a signed C2PA manifest and a metadata tag"
    TAGGED = "a metadata tag"
    NONE = "nothing"


class State(Enum):
    """The state of a file's mark."""

    SIGNED = "signed"
    TAGGED = "tagged"
    UNMARKED = "unmarked"
    ALTERED = "altered"


@dataclass(frozen=True)
class Verdict:
    """The result of `read_mark`.

    Attributes:
        state: SIGNED: a manifest that matches the file marks it as synthetic. TAGGED: only the tag does, which anyone can
            write and remove. UNMARKED: neither does. ALTERED: there is a manifest, and it does not match the file.
        source_type: last word of IPTC's digital source type; empty if none is named.
        generator: the program that wrote the manifest.
        signer: name in the certificate that signed it.
        known_signer: whether one of the given authorities, or this machine's own, issued that certificate.
        reasons: why the manifest does not match the file.
    """

    state: State
    source_type: str = ""
    generator: str = ""
    signer: str = ""
    known_signer: bool = False
    reasons: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the result as messages for the user, one per line."""
        messages = {
            State.SIGNED: "synthetic according to its signed manifest; unchanged since it was signed",
            State.TAGGED: "synthetic according to its metadata tag; not signed, so anyone can have written the tag",
            State.UNMARKED: "not marked as synthetic, which does not prove that it is not",
            State.ALTERED: "changed after it was signed, or the signature is invalid: do not trust its manifest",
        }
        lines = [messages[self.state], *self.reasons]
        if self.source_type:
            lines.append(f"digital source type {self.source_type}")
        if self.signer:
            known = "trusted on this machine" if self.known_signer else "not trusted on this machine"
            lines.append(f"written by {self.generator or 'an unnamed program'}, signed by {self.signer}, {known}")
        return lines


def metadata_tag() -> str:
    """Return the comment of a dubbed file."""
    return (
        f"AI-generated: the mouth in this video was made from speech by InSync {_version()}. "
        f"Digital source type: {SOURCE_TYPE}"
    )


def can_be_signed(path: Path) -> bool:
    """Return whether a file with this extension can hold a manifest."""
    return path.suffix.lower() in _MEDIA_TYPES


def mark_as_synthetic(path: Path, suffix: str, source: Path) -> str | None:
    """Sign a complete file in place. If that fails, the file stays unchanged.

    Args:
        path: the file. While it is signed, its folder needs space for a copy.
        suffix: extension of the file's final name, such as ".mp4".
        source: the file that it was made from: if it has a manifest, the new one includes it.

    Returns:
        None, or the reason why it could not be signed.
    """
    media_type = _MEDIA_TYPES.get(suffix.lower())
    if media_type is None:
        return f"a {suffix.lower().removeprefix('.')} file cannot hold a C2PA manifest; .mp4 and .mov can"
    signed = path.with_name(f"{path.stem}.signed{path.suffix}")
    try:
        _sign(path, signed, media_type, source)
        os.replace(signed, path)
    except Exception as exc:  # noqa: BLE001  errors of a native library, the disk or the key: keep the unsigned file
        return f"signing failed: {exc or type(exc).__name__}"
    finally:
        signed.unlink(missing_ok=True)
    return None


def _sign(path: Path, signed: Path, media_type: str, source: Path) -> None:
    import c2pa

    identity = local_identity(settings.signing_folder())
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", identity.certificates, identity.key, None))
    context = _context(())
    before = _reader(source, context)
    agent = {"name": "InSync", "version": _version()}
    made: dict[str, Any] = {"softwareAgent": agent, "digitalSourceType": SOURCE_TYPE}
    if before is None:
        actions = [{"action": "c2pa.created", **made}]
    else:
        actions = [
            {"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}},
            {"action": "c2pa.edited", **made},
        ]
    claim = {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    with signer, c2pa.Builder(json.dumps(claim), context) as builder:
        if before is not None:
            kind = _MEDIA_TYPES.get(source.suffix.lower(), source.suffix.lower().removeprefix("."))
            with source.open("rb") as file:
                builder.add_ingredient({"relationship": "parentOf", "label": "source"}, kind, file)
        with path.open("rb") as plain, signed.open("w+b") as written:
            builder.sign(signer, media_type, plain, written)


def read_mark(path: Path, authorities: bytes = b"") -> Verdict:
    """Read a file's mark. Nothing is downloaded.

    Args:
        path: a media file.
        authorities: PEM certificates of trusted authorities, in addition to this machine's own.

    Raises:
        UnreadableMedia: the file is missing, or is not a media file.
    """
    tag = _tag(path)
    tagged = Verdict(State.TAGGED, tag) if tag in _SYNTHETIC else Verdict(State.UNMARKED, tag)
    own = local_authority(settings.signing_folder())
    import c2pa

    try:
        reader = _reader(path, _context(tuple(filter(None, (own, authorities)))))
    except c2pa.C2paError as exc:
        return Verdict(State.ALTERED, tag, reasons=(f"its manifest cannot be read: {exc}",))
    if reader is None:
        return tagged
    with reader:
        store, found = json.loads(reader.json()), reader.get_validation_state()
    active = store["manifests"][store["active_manifest"]]
    generators = active.get("claim_generator_info") or [{}]
    signature = active.get("signature_info") or {}
    types = [found for manifest in store["manifests"].values() for found in _source_types(manifest)]
    named = next((kind for kind in types if kind in _SYNTHETIC), next(iter(types), ""))
    failures = (store.get("validation_results") or {}).get("activeManifest", {}).get("failure", [])
    reasons = tuple(
        str(failure.get("explanation") or failure["code"])
        for failure in failures
        if failure["code"] != "signingCredential.untrusted"
    )
    state = State.SIGNED if named in _SYNTHETIC else tagged.state
    return Verdict(
        state if found in _VALID else State.ALTERED,
        named or tag,
        " ".join(filter(None, (generators[0].get("name"), generators[0].get("version")))),
        signature.get("common_name") or signature.get("issuer") or "an unnamed signer",
        found == "Trusted",
        reasons,
    )


def _reader(path: Path, context: Any) -> Any:
    """Open c2pa's reader of a file's manifest; None if the file has none, or its format cannot hold one."""
    import c2pa

    try:
        with path.open("rb") as file:
            return c2pa.Reader.try_create(_MEDIA_TYPES.get(path.suffix.lower(), ""), file, context=context)
    except c2pa.C2paError.NotSupported:
        return None


def _context(authorities: tuple[bytes, ...]) -> Any:
    """Make c2pa's context: offline, and no preview pictures inside of manifests."""
    import c2pa

    chosen: dict[str, Any] = {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        "builder": {"thumbnail": {"enabled": False}},
        "core": {"backing_store_memory_threshold_in_mb": MEMORY_MB},
    }
    if authorities:
        chosen["trust"] = {"user_anchors": b"\n".join(authorities).decode()}
    return c2pa.Context(c2pa.Settings.from_dict(chosen))


def _source_types(manifest: dict[str, Any]) -> list[str]:
    """Return the last words of the digital source types in a manifest's actions."""
    return [
        str(action["digitalSourceType"]).rpartition("/")[2]
        for assertion in manifest.get("assertions", [])
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
        if action.get("digitalSourceType")
    ]


def _tag(path: Path) -> str:
    """Return the last word of the digital source type in a file's comment; empty if there is none."""
    try:
        with av.open(str(path)) as container:
            comments = [value for key, value in container.metadata.items() if key.lower() == "comment"]
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        raise UnreadableMedia(f"{path}: cannot be read as a media file: {exc}") from exc
    found = _TAGGED.search(" ".join(comments))
    return found[1] if found else ""


def _version() -> str:
    try:
        return importlib.metadata.version("insync")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, without being installed
        return "of unknown version"
