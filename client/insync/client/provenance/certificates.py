"""The user's own certificate that signs dubbed files: made on first use, and kept in the user's data folder.

It attests that a file is as InSync wrote it. It does not attest the user's identity, and names neither user nor machine. It
conforms to C2PA's certificate profile: an end-entity certificate for signing, issued by an authority whose key was discarded.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from insync.core.errors import InsyncError

__all__ = ["Identity", "local_authority", "local_identity"]

CERTIFICATES, KEY = "certificates.pem", "key.pem"
VALID_DAYS = 3650
RENEW_DAYS = 30  # before the certificate expires
_ORGANISATION = "InSync, a certificate of its user's own"
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Identity:
    """A certificate chain and key that sign files.

    Attributes:
        certificates: PEM, the signing certificate first, then its authorities.
        key: PEM, PKCS #8, a P-256 key without a passphrase.
    """

    certificates: bytes
    key: bytes


def local_identity(folder: Path) -> Identity:
    """Return the certificate and key of a folder; make them if there are none, or if InSync's own expire soon.

    Args:
        folder: holds `certificates.pem` and `key.pem`; only its owner may read the key. The user may replace them by ones
            that an authority has signed: ES256 (P-256), for the purpose of signing documents or e-mail.

    Raises:
        InsyncError: the files cannot be read, are not a certificate and key, or are the user's and expire soon.
        OSError: the folder cannot be written.
    """
    if not folder.is_dir():
        _make(folder)
    try:
        found = Identity((folder / CERTIFICATES).read_bytes(), (folder / KEY).read_bytes())
        certificate = x509.load_pem_x509_certificates(found.certificates)[0]
        serialization.load_pem_private_key(found.key, None)
    except (OSError, ValueError, TypeError) as exc:
        raise InsyncError(
            f"{folder} holds no {CERTIFICATES} and {KEY} that can be read ({exc}); move the folder away to get new ones"
        ) from exc
    left = certificate.not_valid_after_utc - _now()
    if left > datetime.timedelta(days=RENEW_DAYS):
        return found
    if _common_name(certificate) != _SIGNER:
        raise InsyncError(f"{folder / CERTIFICATES} expires on {certificate.not_valid_after_utc:%Y-%m-%d}: renew it")
    # InSync's own. Another process may renew it too: the one that moves the old folder away makes the new one.
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
        shutil.rmtree(old)
    return local_identity(folder)


def local_authority(folder: Path) -> bytes | None:
    """Return the PEM of the authority of this machine's signatures; None if there is none yet. Creates nothing."""
    try:
        chain = x509.load_pem_x509_certificates((folder / CERTIFICATES).read_bytes())
    except (OSError, ValueError):
        return None
    return chain[-1].public_bytes(_PEM)


_SIGNER = "InSync dub"
_AUTHORITY = "InSync dub, authority"


def _make(folder: Path) -> None:
    """Write a new identity to a temporary folder, then rename it, so that no process reads an incomplete one."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    made.mkdir(mode=0o700)
    try:
        identity = _new()
        (made / CERTIFICATES).write_bytes(identity.certificates)
        key = made / KEY
        key.touch(mode=0o600)  # restricted before the key is written
        key.write_bytes(identity.key)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was faster: use its identity
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _new() -> Identity:
    # The authority signs once; its key is never stored.
    authority_key, signer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (
        _builder(_AUTHORITY, _AUTHORITY, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    signer = (
        _builder(_SIGNER, _AUTHORITY, signer_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = signer_key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(signer.public_bytes(_PEM) + authority.public_bytes(_PEM), key)


def _builder(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    # Rounded to the day, for privacy: the exact time of the user's first dub stays private.
    start = _now().replace(hour=0, minute=0, second=0, microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(_subject(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
