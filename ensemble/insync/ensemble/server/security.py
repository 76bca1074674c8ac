"""Access control of the embedded server: TLS, and the key to Triton's management endpoints."""

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
GRPC_ADMIN_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"  # Triton adds this prefix
# Endpoints that read other clients' memory, change what is served, or reveal other clients. Open to all clients: health,
# metadata, model-config, inference.
RESTRICTED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
_KEY_BYTES = 32


@dataclass(frozen=True)
class ServerTls:
    """TLS of the gRPC endpoint. All files are PEM.

    Attributes:
        cert: the server's certificate, with its chain.
        key: the certificate's private key, without a passphrase.
        client_ca: certificates that sign client certificates: with it, clients without one are refused (mutual TLS).
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Check the files before Triton starts, which would serve with invalid ones without any error.

        Raises:
            ServerError: a file is missing or not PEM, or key and certificate do not match.
        """
        for file in (self.cert, self.key, self.client_ca):
            if file is not None and not file.is_file():
                raise ServerError(f"TLS: there is no file {file}")
        try:
            # An empty passphrase: without one, OpenSSL would prompt for it at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, OSError, ValueError) as exc:
            raise ServerError(
                f"TLS: {self.cert} and {self.key} are not a PEM certificate and its unencrypted key ({_summary(exc)})"
            ) from exc
        if self.client_ca is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError, ValueError) as exc:
                raise ServerError(f"TLS: {self.client_ca} holds no PEM certificates ({_summary(exc)})") from exc

    def options(self) -> list[str]:
        """Return the TLS options of `tritonserver`'s command line."""
        return [
            "--grpc-use-ssl=true",
            f"--grpc-use-ssl-mutual={str(self.client_ca is not None).lower()}",
            f"--grpc-server-cert={self.cert.absolute()}",
            f"--grpc-server-key={self.key.absolute()}",
            *([f"--grpc-root-cert={self.client_ca.absolute()}"] if self.client_ca is not None else []),
        ]

    def check_endpoint(self, host: str, port: int, timeout_s: float) -> None:
        """Check that the endpoint presents this certificate.

        Raises:
            ServerError: it does not.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared byte for byte instead
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((host, port), timeout_s) as plain,
                context.wrap_socket(plain) as encrypted,
            ):
                presented = encrypted.getpeercert(binary_form=True) or b""
        except (ssl.SSLError, OSError) as exc:
            raise ServerError(f"TLS: the gRPC endpoint does not use TLS ({_summary(exc)})") from exc
        if ssl.DER_cert_to_PEM_cert(presented).strip() not in self.cert.read_text(errors="replace"):
            raise ServerError(
                f"TLS: the gRPC endpoint must present the certificate of {self.cert}, it presents another"
            )


def new_admin_key() -> str:
    """Generate a random admin key, for the lifetime of one server."""
    return secrets.token_hex(_KEY_BYTES)


def restrictions(key: str) -> list[str]:
    """Return the options that restrict management to this key. Other users of the machine can read the command line."""
    apis = ",".join(RESTRICTED)
    return [
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={key}",
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={key}",
    ]


def admin_headers(key: str) -> dict[str, str]:
    """Return the headers of a management request, for gRPC and HTTP."""
    return {GRPC_ADMIN_HEADER: key, ADMIN_HEADER: key}


def infer_over_http(url: str, model: str, inputs: list[dict[str, Any]], timeout_s: float) -> None:
    """Run one inference over Triton's HTTP endpoint.

    That endpoint has no TLS, requires no client certificate, and listens only on loopback when gRPC uses TLS.

    Args:
        url: HOST:PORT.
        model: the model to run, for all its outputs.
        inputs: in the KServe protocol's form: name, shape, datatype, data.
        timeout_s: for connecting, and for each read.

    Raises:
        ServerError: no response, or an error response.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout_s)
    try:
        body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise ServerError(f"{model} does not serve: {json.loads(content)['error']}")
    except TimeoutError as exc:
        raise ServerError(f"{model} does not serve: Deadline Exceeded") from exc  # gRPC's text: the supervisor reads it
    except (OSError, http.client.HTTPException, ValueError, LookupError) as exc:
        raise ServerError(f"{model} does not serve: {_summary(exc)}") from exc
    finally:
        connection.close()


def _summary(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
