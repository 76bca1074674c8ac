"""TLS of the client: which certificates it trusts and shows, and what is wrong where no connection comes about."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from insync.core.errors import BadInput

__all__ = ["TlsOptions", "diagnosis"]

_READ_S = 0.5  # how long a server may take to refuse a client's certificate after the handshake


@dataclass(frozen=True)
class TlsOptions:
    """How to speak TLS with a server. All files are PEM.

    Attributes:
        ca: certificates that sign the server's; None trusts those that gRPC brings.
        cert: this client's certificate, for servers that ask for one (mutual TLS).
        key: its private key, without a passphrase.
        server_name: the name to expect in the server's certificate, where it is not the address's.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes.

        Raises:
            BadInput: a file is missing or no PEM, or certificate and key do not belong together.
        """
        self.context()
        read = [None if file is None else Path(file).read_bytes() for file in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*read)

    def context(self) -> ssl.SSLContext:
        """The same for Python's own TLS, which says what is wrong with a file and gRPC does not.

        Raises:
            BadInput: as `credentials`.
        """
        for file in (self.ca, self.cert, self.key):
            if file is not None and not Path(file).is_file():
                raise BadInput(f"TLS: there is no file {file}")
        if (self.cert is None) != (self.key is None):
            raise BadInput(
                "TLS: a client's certificate needs its key, and the key its certificate; one of them is missing"
            )
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as exc:
            raise BadInput(f"TLS: {self.ca} holds no PEM certificates ({_said(exc)})") from exc
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")
            except (ssl.SSLError, OSError, ValueError) as exc:
                raise BadInput(
                    f"TLS: {self.cert} and {self.key} are not a PEM certificate and its unencrypted key ({_said(exc)})"
                ) from exc
        context.set_alpn_protocols(["h2"])
        return context


def diagnosis(host: str, port: int, tls: TlsOptions | None, timeout_s: float) -> str | None:
    """Why gRPC could not connect, as far as TLS has to do with it. Blocks for up to `timeout_s`, and a little more.

    Returns:
        One clause for a person, or None where it has another cause.
    """
    try:
        if tls is None:
            return _of_plain(host, port, timeout_s)
        with socket.create_connection((host, port), timeout_s) as plain:
            return _of_tls(plain, tls, tls.server_name or host)
    except OSError:
        return None  # nobody there at all


def _of_plain(host: str, port: int, timeout_s: float) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # asked only whether it speaks TLS
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout_s) as plain:
        try:
            context.wrap_socket(plain).close()
        except (ssl.SSLError, OSError):
            return None
    return "the server speaks TLS, and this client was not told to: name its CA with --tls-ca, or tls=TlsOptions(ca=…)"


def _of_tls(plain: socket.socket, tls: TlsOptions, name: str) -> str | None:
    try:
        spoken = tls.context().wrap_socket(plain, server_hostname=name)
    except ssl.SSLCertVerificationError as exc:
        trusted = tls.ca or "the certificates that come with this machine"
        return f"the server's certificate does not hold against {trusted}: {exc.verify_message.rstrip('.')}"
    except ssl.SSLError as exc:
        if exc.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"):
            return "the server does not speak TLS: leave the TLS options away, or start it with --tls-cert"
        return f"TLS failed: {_said(exc)}"
    except ConnectionError:
        return "the server does not speak TLS: leave the TLS options away, or start it with --tls-cert"
    with spoken:
        spoken.settimeout(_READ_S)
        try:
            # With TLS 1.3 the client is done first; who lets it in speaks first, and who does not hangs up.
            if spoken.recv(1):
                return None
        except TimeoutError:
            return None
        except OSError:
            pass  # refused with an alert, or cut off
    if tls.cert is None:
        return "the server lets in only clients with a certificate: name yours with --tls-cert and --tls-key"
    return f"the server refuses this client's certificate {tls.cert}: is it signed by the CA that the server trusts?"


def _said(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
