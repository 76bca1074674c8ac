"""Who may talk to the embedded server: TLS, and the key to Triton's management endpoints."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insync.core.errors import ServerError

ADMIN_HEADER = "insync-admin"
GRPC_ADMIN_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"  # Triton puts this before it
# What reads other people's memory, changes what is served, or tells who else is there. Open to everybody: health,
# metadata, model-config, inference.
RESTRICTED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
_KEY_BYTES = 32


@dataclass(frozen=True)
class ServerTls:
    """TLS of the gRPC endpoint. All files are PEM.

    Attributes:
        cert: the server's certificate, with its chain.
        key: the certificate's private key, without a passphrase.
        client_ca: certificates that sign clients' certificates: with it, who has none is not let in (mutual TLS).
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Reads the files, so that a wrong one is named before Triton starts: it would serve without a word.

        Raises:
            ServerError: a file is missing or no PEM, or key and certificate do not belong together.
        """
        for file in (self.cert, self.key, self.client_ca):
            if file is not None and not file.is_file():
                raise ServerError(f"TLS: there is no file {file}")
        try:
            # A passphrase nobody can be asked for: OpenSSL would wait at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, OSError, ValueError) as exc:
            raise ServerError(
                f"TLS: {self.cert} and {self.key} are not a PEM certificate and its unencrypted key ({_said(exc)})"
            ) from exc
        if self.client_ca is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError, ValueError) as exc:
                raise ServerError(f"TLS: {self.client_ca} holds no PEM certificates ({_said(exc)})") from exc

    def options(self) -> list[str]:
        """For `tritonserver`'s command line."""
        return [
            "--grpc-use-ssl=true",
            f"--grpc-use-ssl-mutual={str(self.client_ca is not None).lower()}",
            f"--grpc-server-cert={self.cert.absolute()}",
            f"--grpc-server-key={self.key.absolute()}",
            *([f"--grpc-root-cert={self.client_ca.absolute()}"] if self.client_ca is not None else []),
        ]

    def is_spoken(self, host: str, port: int, timeout_s: float) -> None:
        """Makes sure that the endpoint answers with this certificate.

        Raises:
            ServerError: it does not.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared byte for byte instead
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((host, port), timeout_s) as plain,
                context.wrap_socket(plain) as spoken,
            ):
                served = spoken.getpeercert(binary_form=True) or b""
        except (ssl.SSLError, OSError) as exc:
            raise ServerError(f"TLS: the gRPC endpoint does not speak it ({_said(exc)})") from exc
        if ssl.DER_cert_to_PEM_cert(served).strip() not in self.cert.read_text(errors="replace"):
            raise ServerError(f"TLS: the gRPC endpoint shows another certificate than that of {self.cert}")


def new_admin_key() -> str:
    """A key that nobody guesses, for one server's life."""
    return secrets.token_hex(_KEY_BYTES)


def restrictions(key: str) -> list[str]:
    """For `tritonserver`'s command line: management only with this key. Other users of the machine may read it there."""
    apis = ",".join(RESTRICTED)
    return [
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={key}",
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={key}",
    ]


def admin_headers(key: str) -> dict[str, str]:
    """What a management request carries, over gRPC or HTTP."""
    return {GRPC_ADMIN_HEADER: key, ADMIN_HEADER: key}


def ask_over_http(url: str, model: str, inputs: list[dict[str, Any]], timeout_s: float) -> None:
    """One inference over Triton's HTTP endpoint: it has no TLS, is on loopback where gRPC has, and asks for no certificate.

    Args:
        url: HOST:PORT.
        model: to ask, for all its outputs.
        inputs: as the KServe protocol has them: name, shape, datatype, data.
        timeout_s: for connecting, and for each read.

    Raises:
        ServerError: no answer, or an error instead of one.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout_s)
    try:
        body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise ServerError(f"{model} does not serve: {json.loads(content)['error']}")
    except TimeoutError as exc:
        raise ServerError(f"{model} does not serve: Deadline Exceeded") from exc  # gRPC's words, which supervisors know
    except (OSError, http.client.HTTPException, ValueError, LookupError) as exc:
        raise ServerError(f"{model} does not serve: {_said(exc)}") from exc
    finally:
        connection.close()


def _said(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
