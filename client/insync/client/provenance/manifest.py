"""What says of a file that its speech was put into a mouth: a signed C2PA manifest, and a plain tag beside it.

The manifest (C2PA Technical Specification 2) holds a hash of the file, so that a change shows. The tag is one line in the
container's comment, for players and for formats that cannot hold a manifest. Both name IPTC's digital source type.
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
# The picture is a camera's, the mouth is not.
SOURCE_TYPE = f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia"
_SYNTHETIC = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
_TAGGED = re.compile(re.escape(_VOCABULARY) + r"(\w+)")
_MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
MEMORY_MB = 32  # of a file under work; a longer one goes to a temporary file while it is signed
_VALID = ("Valid", "Trusted")  # what c2pa calls a manifest that fits its file


class Mark(Enum):
    """What a written file carries."""

    SIGNED = "a signed C2PA manifest and a metadata tag"
    TAGGED = "a metadata tag"
    NONE = "nothing"


class State(Enum):
    """What a file says about itself."""

    SIGNED = "signed"
    TAGGED = "tagged"
    UNMARKED = "unmarked"
    ALTERED = "altered"


@dataclass(frozen=True)
class Verdict:
    """What `read_mark` found.

    Attributes:
        state: SIGNED: a manifest that fits the file says that it is synthetic. TAGGED: only the tag says so, which anybody
            can write and remove. UNMARKED: nothing says so. ALTERED: there is a manifest, and it does not fit the file.
        source_type: IPTC's digital source type, its last word; empty where none is named.
        generator: what wrote the manifest.
        signer: whose certificate signed it.
        known_signer: whether an authority that we were told of, or this machine's own, vouches for that certificate.
        reasons: what does not fit.
    """

    state: State
    source_type: str = ""
    generator: str = ""
    signer: str = ""
    known_signer: bool = False
    reasons: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """In words, one fact a line."""
        said = {
            State.SIGNED: "synthetic, as its signed manifest says; unchanged since",
            State.TAGGED: "synthetic, as its metadata tag says; not signed, so nothing shows who wrote that",
            State.UNMARKED: "nothing says that it is synthetic, which does not mean that it is not",
            State.ALTERED: "changed after it was signed, or the signature is wrong: do not rely on what it says",
        }
        found = [said[self.state], *self.reasons]
        if self.source_type:
            found.append(f"digital source type {self.source_type}")
        if self.signer:
            known = "known to this machine" if self.known_signer else "whom nobody vouches for on this machine"
            found.append(f"written by {self.generator or 'an unnamed program'}, signed by {self.signer}, {known}")
        return found


def metadata_tag() -> str:
    """The comment of a dubbed file."""
    return (
        f"AI-generated: the mouth in this video was made from speech by InSync {_version()}. "
        f"Digital source type: {SOURCE_TYPE}"
    )


def can_be_signed(path: Path) -> bool:
    """Whether a file of this name can hold a manifest of ours."""
    return path.suffix.lower() in _MEDIA_TYPES


def mark_as_synthetic(path: Path, suffix: str, source: Path) -> str | None:
    """Signs a finished file, in place. Whatever goes wrong, the file is left as it was.

    Args:
        path: the file; a second one of its size is needed beside it meanwhile.
        suffix: of the name that it will have, as ".mp4".
        source: what it was made from: if that has a manifest, the new one includes it.

    Returns:
        None, or why it could not be signed.
    """
    media_type = _MEDIA_TYPES.get(suffix.lower())
    if media_type is None:
        return f"a {suffix.lower().removeprefix('.')} file cannot hold a C2PA manifest; .mp4 and .mov can"
    signed = path.with_name(f"{path.stem}.signed{path.suffix}")
    try:
        _sign(path, signed, media_type, source)
        os.replace(signed, path)
    except Exception as exc:  # noqa: BLE001  a library in another language, a full disk, a broken key: the file stays
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
    """Reads what a file says about itself. Nothing is fetched from anywhere.

    Args:
        path: a media file.
        authorities: PEM certificates whose signatures count as known, beside this machine's own.

    Raises:
        UnreadableMedia: it is missing, or no media file.
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
        signature.get("common_name") or signature.get("issuer") or "somebody without a name",
        found == "Trusted",
        reasons,
    )


def _reader(path: Path, context: Any) -> Any:
    """c2pa's view of a file; None where it has no manifest, or is of a kind that cannot have one."""
    import c2pa

    try:
        with path.open("rb") as file:
            return c2pa.Reader.try_create(_MEDIA_TYPES.get(path.suffix.lower(), ""), file, context=context)
    except c2pa.C2paError.NotSupported:
        return None


def _context(authorities: tuple[bytes, ...]) -> Any:
    """Settings of c2pa: offline, no preview pictures inside of manifests."""
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
    """The digital source types that a manifest's actions name, their last words."""
    return [
        str(action["digitalSourceType"]).rpartition("/")[2]
        for assertion in manifest.get("assertions", [])
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
        if action.get("digitalSourceType")
    ]


def _tag(path: Path) -> str:
    """The digital source type of a file's comment, its last word; empty where there is none."""
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
