"""TLS end to end: which clients are accepted, which are refused, and with which message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray
from tests.support.certificates import Authority, Pair, authority

from insync.cli.main import main
from insync.client import BadInput, Client, InsyncError, ServerUnavailable, TlsOptions
from insync.core.errors import ServerError
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import ServerTls

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return authority(folder, "ours")


@pytest.fixture(scope="module")
def pair(ca: Authority) -> Pair:
    return ca.sign("server", ("127.0.0.1",), ("insync.test",))


@pytest.fixture(scope="module")
def trusted(ca: Authority) -> Pair:
    return ca.sign("client")


@pytest.fixture(scope="module")
def untrusted(folder: Path) -> Pair:
    return authority(folder, "theirs").sign("untrusted", ("127.0.0.1",))


def started(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    try:
        server.start()
        yield server
    finally:
        server.stop(drain=False)


@pytest.fixture(scope="module")
def one_way(folder: Path, pair: Pair) -> Iterator[EmbeddedServer]:
    # On all addresses: HTTP and metrics must stay on loopback all the same.
    tls = ServerTls(pair.cert, pair.key)
    yield from started(EmbeddedServer(twin_store=folder / "twins", host="0.0.0.0", tls=tls))


@pytest.fixture(scope="module")
def mutual(folder: Path, pair: Pair, ca: Authority) -> Iterator[EmbeddedServer]:
    tls = ServerTls(pair.cert, pair.key, ca.cert)
    yield from started(EmbeddedServer(twin_store=folder / "mutual", tls=tls))


def address(server: EmbeddedServer) -> str:
    return f"127.0.0.1:{server.grpc_url.rpartition(':')[2]}"


async def connect(server: EmbeddedServer, tls: TlsOptions | None) -> None:
    async with Client(address(server), tls=tls):
        pass


def refused(server: EmbeddedServer, tls: TlsOptions | None) -> str:
    """Return the error of a refused client."""
    with pytest.raises(ServerUnavailable) as caught:
        asyncio.run(connect(server, tls))
    assert not caught.value.retryable
    return str(caught.value)


def test_a_stream_through_tls(one_way: EmbeddedServer, ca: Authority, images: list[NDArray[Any]], audio: Any) -> None:
    async def run() -> list[bool]:
        async with Client(address(one_way), tls=TlsOptions(ca=ca.cert)) as client:
            twin = await client.register(images[:2])
            return [synced.changed async for synced in client.stream(images[:3], audio, twin=twin)]

    assert asyncio.run(run()) == [True] * 3


def test_only_grpc_listens_beyond_loopback(one_way: EmbeddedServer) -> None:
    assert one_way.pid is not None
    listening = {
        connection.laddr.port: connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process(one_way.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = {url: int(url.rpartition(":")[2]) for url in (one_way.grpc_url, one_way.http_url, one_way.metrics_url)}
    assert listening[ports[one_way.grpc_url]] in ("0.0.0.0", "::")
    assert listening[ports[one_way.http_url]] == listening[ports[one_way.metrics_url]] == "127.0.0.1"


def test_refused_clients_get_the_reason(one_way: EmbeddedServer, ca: Authority, untrusted: Pair) -> None:
    assert "certificate cannot be verified with" in refused(one_way, TlsOptions(ca=untrusted.cert))
    assert "certificate cannot be verified with this machine's CA certificates" in refused(one_way, TlsOptions())
    assert "speaks TLS, and this client does not" in refused(one_way, None)
    named = refused(one_way, TlsOptions(ca=ca.cert, server_name="elsewhere.test"))
    assert "elsewhere.test" in named
    asyncio.run(connect(one_way, TlsOptions(ca=ca.cert, server_name="insync.test")))


def test_mutual_tls(mutual: EmbeddedServer, ca: Authority, trusted: Pair, untrusted: Pair) -> None:
    asyncio.run(connect(mutual, TlsOptions(ca.cert, trusted.cert, trusted.key)))
    assert "only clients with a certificate" in refused(mutual, TlsOptions(ca.cert))
    assert "refuses this client's certificate" in refused(mutual, TlsOptions(ca.cert, untrusted.cert, untrusted.key))
    mutual.probe(30)
    assert mutual.management().counts()["lipsync"].succeeded > 0  # the supervisor's request, over loopback


def test_tls_to_a_server_without(server: EmbeddedServer, ca: Authority) -> None:
    assert "does not speak TLS" in refused(server, TlsOptions(ca.cert))


def test_the_command_line(
    mutual: EmbeddedServer,
    ca: Authority,
    trusted: Pair,
    sample_speech: Path,
    images: list[NDArray[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from insync.core.images import encode_jpeg

    photo, out = tmp_path / "photo.jpg", tmp_path / "out.mp4"
    photo.write_bytes(encode_jpeg(images[0], 90))
    common = ["twin", "create", str(photo), "--server", mutual.grpc_url, "--tls-ca", str(ca.cert)]
    assert main([*common, "--tls-cert", str(trusted.cert), "--tls-key", str(trusted.key)]) == 0
    assert len(capsys.readouterr().out.strip()) == 32
    assert main(["dub", str(photo), str(sample_speech), "-o", str(out), "-q", *common[3:]]) == 1
    assert "name yours with --tls-cert and --tls-key" in capsys.readouterr().err
    assert main(["probe", *common[4:], "--tls-cert", str(trusted.cert), "--tls-key", str(trusted.key), "--canary"]) == 0
    assert main(["probe", *common[4:]]) == 1
    assert main(["twin", "create", str(photo), "--tls-ca", str(ca.cert)]) == 1
    assert "TLS options need --server" in capsys.readouterr().err


def test_a_load_test(
    mutual: EmbeddedServer, ca: Authority, trusted: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*tls: str) -> int:
        users = ["--users", "live=1", "--fps", "2", "--height", "180", "--deadline", "60000", "--run-time", "12s"]
        return main(["loadtest", "-q", "--host", mutual.grpc_url, *users, *tls, "-o", str(tmp_path)])

    assert load("--tls-ca", str(ca.cert), "--tls-cert", str(trusted.cert), "--tls-key", str(trusted.key)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["frames"] > 0
    assert not report["errors"]
    assert report["server"] == f"{mutual.grpc_url}, over TLS"
    assert "tls" not in report["users"]
    assert load() == 0  # it counts errors, and continues
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["frames"] == 0
    assert any("the server speaks TLS" in error for error in report["errors"])
    capsys.readouterr()
    assert load("--tls-ca", str(tmp_path / "none.pem")) == 1
    assert "there is no file" in capsys.readouterr().err
    assert main(["loadtest", "--tls"]) == 1
    assert "TLS options need --host" in capsys.readouterr().err


def test_invalid_certificate_files(pair: Pair, trusted: Pair, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for tls, message in (
        (ServerTls(tmp_path / "none.pem", pair.key), r"there is no file .*none\.pem"),
        (ServerTls(text, pair.key), "not a PEM certificate and its unencrypted key"),
        (ServerTls(pair.cert, trusted.key), "not a PEM certificate and its unencrypted key"),
        (ServerTls(pair.cert, pair.key, text), "holds no PEM certificates"),
    ):
        with pytest.raises(ServerError, match=message):
            EmbeddedServer(twin_store=tmp_path, tls=tls)
    wrong: tuple[tuple[TlsOptions, str], ...] = (
        (TlsOptions(tmp_path / "none.pem"), "there is no file"),
        (TlsOptions(text), "holds no PEM certificates"),
        (TlsOptions(pair.cert, trusted.cert), "one of them is missing"),
        (TlsOptions(pair.cert, trusted.cert, pair.key), "not a PEM certificate and its unencrypted key"),
    )
    for options, message in wrong:
        with pytest.raises(BadInput, match=message):
            Client("127.0.0.1:1", tls=options)
    assert issubclass(BadInput, InsyncError)
