"""The supervisor of an embedded server: reloads a model whose process died or hangs, and restarts a dead server.

Triton does neither, and its readiness endpoints keep reporting "ready". The supervisor checks three things: the models'
processes, several times a second; a canary frame through both ensembles; and, less often, a registration that must be
refused. Clients resend lost requests (`insync.client.transport.failover`): models keep no state between requests.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from insync.core.errors import ServerError
from insync.core.spec import ENSEMBLES, FRAME_MODEL
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.management import Counts
from insync.ensemble.server.processes import State, processes, state

__all__ = ["Supervisor", "SupervisorConfig", "stalled_steps"]

# Models that call another model hang when it does.
_CALLED = dict.fromkeys(("lipsync_twin_features", "lipsync_twin", FRAME_MODEL.name), ("lipsync_reference",))
_UNHEALTHY = re.compile(r"Stub process '(lipsync\w*?)_\d+_\d+' is not healthy")
_NONE = Counts()
_FAILURES = 3  # failed canaries in a row, with no single model at fault, before the server is restarted


@dataclass(frozen=True)
class SupervisorConfig:
    """Intervals, timeouts and limits of the supervisor.

    Attributes:
        canary_every_s: interval between canaries.
        canary_timeout_s: for each ensemble's response. A busy server may take longer: its models still make progress.
        registration_every_s: interval between checks of `lipsync_twin`.
        registration_timeout_s: for its response; the registrations queued before it may take a while.
        restarts, window_s: the supervisor gives up after this many restarts of the server within this many seconds.
    """

    canary_every_s: float = 5.0
    canary_timeout_s: float = 10.0
    registration_every_s: float = 60.0
    registration_timeout_s: float = 300.0
    restarts: int = 5
    window_s: float = 300.0


class Supervisor:
    """Supervises a running server. Not thread-safe; nothing else may start or stop the server meanwhile.

    Args:
        server: a started server.
        log: called with one line for each reload or restart.
        config: intervals, timeouts and limits.

    Attributes:
        reloaded, restarted: number of model reloads and of server restarts so far.
    """

    def __init__(
        self, server: EmbeddedServer, log: Callable[[str], None], config: SupervisorConfig | None = None
    ) -> None:
        self._server = server
        self._log = log
        self._config = config or SupervisorConfig()
        self._management = server.management()
        self._processes: dict[int, str] = {}
        self._canary_at_s = time.monotonic() + self._config.canary_every_s
        self._failures = 0
        self._starts_s: list[float] = []
        self._registrar = ThreadPoolExecutor(1, thread_name_prefix="insync-supervisor")
        self._registration: Future[bool] | None = None
        self._registration_at_s = time.monotonic() + self._config.registration_every_s
        self.reloaded = self.restarted = 0

    def watch(self) -> None:
        """Check the server once and recover it if needed. Call it several times a second; recovering takes longer.

        Raises:
            ServerError: the server keeps dying.
        """
        pid = self._server.pid
        if pid is None:
            self._restart(self._reason())
            return
        if not self._processes:
            self._processes = processes(pid)
        states = [(model, state(process, pid)) for process, model in self._processes.items()]
        dead = {model for model, seen in states if seen is State.GONE}
        stopped = {model for model, seen in states if seen is State.STOPPED}
        if dead:
            self._reload(dead, "its process had died")
        elif stopped:  # if a model has several processes, frames bypass a stopped one: canaries do not notice
            self._reload(stopped, "its process was stopped")
        elif time.monotonic() >= self._canary_at_s:
            self._send_canary()
            self._canary_at_s = time.monotonic() + self._config.canary_every_s
        else:
            self._check_registrations()

    def _send_canary(self) -> None:
        before: dict[str, Counts] = {}
        try:
            before = self._management.counts()
            self._server.probe(self._config.canary_timeout_s)
        except ServerError as exc:
            self._handle_failure(before, exc)
        else:
            self._failures = 0

    def _handle_failure(self, before: Mapping[str, Counts], error: ServerError) -> None:
        """Reload a model, restart the server, or do nothing after a failed canary."""
        pid = self._server.pid
        if pid is None or any(state(process, pid) is State.GONE for process in self._processes):
            return  # the next check handles it
        if "RESOURCE_EXHAUSTED" in str(error):
            return  # other probes use up the capacity for canaries: not a fault
        unhealthy = _UNHEALTHY.search(str(error))
        if unhealthy is not None:
            self._reload({unhealthy[1]}, "its process did not respond")
            return
        stuck = self._hanging(before) if before else None
        if stuck is not None:
            self._reload({stuck, *_CALLED.get(stuck, ())}, f"{stuck} hung")
            return
        if before and "Deadline Exceeded" in str(error) and self._serves_frames(before):
            return  # it is overloaded
        self._failures += 1
        if self._failures >= _FAILURES:
            self._restart(str(error))

    def _hanging(self, before: Mapping[str, Counts]) -> str | None:
        """Return the first stalled step that does not respond by itself either: a server may just be slow."""
        with suppress(ServerError):  # Triton itself does not respond
            for model in stalled_steps(self._server.frame_steps, before, self._management.counts()):
                if not self._responds(model, self._config.canary_timeout_s):
                    return model
        return None

    def _serves_frames(self, before: Mapping[str, Counts]) -> bool:
        """Return whether an ensemble has served frames since `before`."""
        with suppress(ServerError):
            after = self._management.counts()
            return any(after.get(name, _NONE).succeeded > before.get(name, _NONE).succeeded for name in ENSEMBLES)
        return False

    def _responds(self, model: str, timeout_s: float) -> bool:
        """Return whether a model finishes any request, ours or another client's."""
        before = self._management.counts().get(model, _NONE)
        try:
            self._management.infer(model, timeout_s)
        except ServerError:
            return self._management.counts().get(model, _NONE).ended > before.ended
        return True

    def _check_registrations(self) -> None:
        """Check `lipsync_twin` from a thread: it runs registrations one after the other, for seconds each."""
        if self._registration is None:
            if time.monotonic() >= self._registration_at_s:
                timeout_s = self._config.registration_timeout_s
                self._registration = self._registrar.submit(self._responds, "lipsync_twin", timeout_s)
        elif self._registration.done():
            finished, self._registration = self._registration, None
            self._registration_at_s = time.monotonic() + self._config.registration_every_s
            with suppress(ServerError):  # Triton itself does not respond: the canary handles that
                if not finished.result():
                    self._reload({"lipsync_twin", *_CALLED["lipsync_twin"]}, "lipsync_twin hung")

    def _reload(self, models: Collection[str], why: str) -> None:
        """Reload models. Requests that wait for one of their processes fail, and clients resend them."""
        started_s = time.monotonic()
        for process, model in self._processes.items():
            if (
                model in models and state(process, self._server.pid) is not State.GONE
            ):  # otherwise its process id may have been reused
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)  # unloading would wait for a process that hangs
        names = ", ".join(sorted(models))
        try:
            for model in sorted(models):
                self._management.unload(model)
                self._management.load(model)
        except ServerError as exc:
            self._restart(f"{names} could not be reloaded ({exc})")
            return
        # Keep the other models' processes: one that died meanwhile must still be noticed.
        kept = {process: model for process, model in self._processes.items() if model not in models}
        self._processes = {**kept, **processes(self._server.pid)}
        self._canary_at_s = 0.0  # check at once whether it helped
        self.reloaded += len(models)
        self._log(f"{names} reloaded in {time.monotonic() - started_s:.1f} s: {why}")

    def _restart(self, why: str) -> None:
        started_s = time.monotonic()
        self._starts_s = [at for at in self._starts_s if started_s - at < self._config.window_s]
        if len(self._starts_s) >= self._config.restarts:
            raise ServerError(f"the server was restarted {len(self._starts_s)} times without recovering: {why}")
        self._starts_s.append(started_s)
        self._processes, self._failures = {}, 0
        self._server.stop(drain=False)
        try:
            self._server.start()
        except ServerError as exc:
            self._log(f"the server could not be restarted: {exc}")  # the next check tries again
            return
        self.restarted += 1
        self._log(f"the server was restarted in {time.monotonic() - started_s:.1f} s: {why}")

    def _reason(self) -> str:
        try:
            self._server.check()
        except ServerError as exc:
            return str(exc)
        return "it did not start"


def stalled_steps(steps: Sequence[str], before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[str]:
    """Return the steps that may be holding up a frame.

    Args:
        steps: all the models that process a frame, in order.
        before, after: counts of each model, before the frame was sent and after its response failed to come.

    Returns:
        The steps that have finished no request, in order. If one hangs, it is the first: those after it only wait.
    """
    return [step for step in steps if after.get(step, _NONE).ended <= before.get(step, _NONE).ended]
