"""TLS of the client: its certificates, and the diagnosis of failed connections."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from insync.core.errors import BadInput

__all__ = ["TlsOptions", "diagnosis"]

_READ_S = 0.5  # time for a server to refuse the client's certificate after the handshake


@dataclass(frozen=True)
class TlsOptions:
    """Certificates and keys of a TLS connection, for `Client(tls=...)`. All files are PEM.

    They are read when the `Client` is made, which raises `BadInput` if a file is missing or invalid.

    Attributes:
        ca: file of the CA certificates to trust for the server's certificate; None trusts those that gRPC brings.
        cert: file of this client's certificate, for servers that require one (mutual TLS). It needs `key`.
        key: file of its private key, without a passphrase.
        server_name: host name that the server's certificate must have, if it is not the address's.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials for gRPC.

        Raises:
            BadInput: a file is missing or is not PEM, or certificate and key do not belong together.
        """
        self.context()
        read = [None if file is None else Path(file).read_bytes() for file in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*read)

    def context(self) -> ssl.SSLContext:
        """Return the same for Python's own TLS, which reports what is wrong with a file, unlike gRPC.

        Raises:
            BadInput: as in `credentials`.
        """
        for file in (self.ca, self.cert, self.key):
            if file is not None and not Path(file).is_file():
                raise BadInput(f"TLS: there is no file {file}")
        if (self.cert is None) != (self.key is None):
            raise BadInput("TLS: a client's certificate and its key must be given together; one of them is missing")
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as exc:
            raise BadInput(f"TLS: {self.ca} holds no PEM certificates ({_first_line(exc)})") from exc
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")
            except (ssl.SSLError, OSError, ValueError) as exc:
                raise BadInput(
                    f"TLS: {self.cert} and {self.key} are not a PEM certificate and its unencrypted key ({_first_line(exc)})"
                ) from exc
        context.set_alpn_protocols(["h2"])
        return context


def diagnosis(host: str, port: int, tls: TlsOptions | None, timeout_s: float) -> str | None:
    """Find out why gRPC could not connect, if TLS is the cause. Blocks for up to about `timeout_s`.

    Returns:
        The reason as one clause for the user, or None if the cause is another one.
    """
    try:
        if tls is None:
            return _diagnose_plain(host, port, timeout_s)
        with socket.create_connection((host, port), timeout_s) as plain:
            return _diagnose_tls(plain, tls, tls.server_name or host)
    except OSError:
        return None  # no server listens there


def _diagnose_plain(host: str, port: int, timeout_s: float) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only to find out whether it speaks TLS
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout_s) as plain:
        try:
            context.wrap_socket(plain).close()
        except (ssl.SSLError, OSError):
            return None
    return "the server speaks TLS, and this client does not: name its CA with --tls-ca, or tls=TlsOptions(ca=…)"


def _diagnose_tls(plain: socket.socket, tls: TlsOptions, name: str) -> str | None:
    try:
        connection = tls.context().wrap_socket(plain, server_hostname=name)
    except ssl.SSLCertVerificationError as exc:
        trusted = tls.ca or "this machine's CA certificates"
        return f"the server's certificate cannot be verified with {trusted}: {exc.verify_message.rstrip('.')}"
    except ssl.SSLError as exc:
        if exc.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"):
            return "the server does not speak TLS: remove the TLS options, or start it with --tls-cert"
        return f"TLS failed: {_first_line(exc)}"
    except ConnectionError:
        return "the server does not speak TLS: remove the TLS options, or start it with --tls-cert"
    with connection:
        connection.settimeout(_READ_S)
        try:
            # In TLS 1.3 the client finishes the handshake first. A server that accepts it then sends data; one that does not closes.
            if connection.recv(1):
                return None
        except TimeoutError:
            return None
        except OSError:
            pass  # refused with an alert, or closed
    if tls.cert is None:
        return "the server accepts only clients with a certificate: name yours with --tls-cert and --tls-key"
    return (
        f"the server refuses this client's certificate {tls.cert}: it must be signed by the CA that the server trusts"
    )


def _first_line(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
