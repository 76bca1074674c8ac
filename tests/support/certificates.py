"""Certificates for tests: certificate authorities that are valid for a day, and certificates that they sign."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key, PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its key."""

    cert: Path
    _certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    def sign(self, name: str, addresses: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Pair:
        """Sign a certificate for these addresses and host names, and write it beside the CA's."""
        key = ec.generate_private_key(ec.SECP256R1())
        others: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
        others += [x509.DNSName(n) for n in names]
        builder = _builder(name, key).issuer_name(self._certificate.subject)
        if others:
            builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
        folder = self.cert.parent
        return _written(folder / name, builder.sign(self._key, hashes.SHA256()), key)


def authority(folder: Path, name: str) -> Authority:
    """Create a CA, with its certificate in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key).issuer_name(_subject(name))
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    return Authority(_written(folder / name, signed, key).cert, signed, key)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _written(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pair = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key"))
    pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    kind = serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return pair
