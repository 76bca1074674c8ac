"""Keeps an embedded server serving: a model whose process has died or hangs is reloaded, a dead server is started again.

Triton does neither, and its ready endpoints stay green meanwhile. Three things are watched: the models' processes, several
times a second; a canary frame through both ensembles; and now and then a registration that has to be refused. What is
lost on the way is sent again by the clients (`insync.client.transport.failover`): models keep nothing that a frame does not bring.
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

# Who waits inside another model's process hangs with it.
_CALLED = dict.fromkeys(("lipsync_twin_features", "lipsync_twin", FRAME_MODEL.name), ("lipsync_reference",))
_ILL = re.compile(r"Stub process '(lipsync\w*?)_\d+_\d+' is not healthy")
_NONE = Counts()
_FAILURES = 3  # of canaries in a row, where no model can be blamed, until the server is started again


@dataclass(frozen=True)
class SupervisorConfig:
    """How often is looked, and how long is waited.

    Attributes:
        canary_every_s: between two canaries.
        canary_timeout_s: for each ensemble's answer. A server that is only busy may take longer: its models make headway.
        registration_every_s: between two looks at `lipsync_twin`.
        registration_timeout_s: for its answer; the registrations before it may take their time.
        restarts, window_s: so many starts of the server within so many seconds, and it is given up.
    """

    canary_every_s: float = 5.0
    canary_timeout_s: float = 10.0
    registration_every_s: float = 60.0
    registration_timeout_s: float = 300.0
    restarts: int = 5
    window_s: float = 300.0


class Supervisor:
    """Looks after a server that runs. Not thread-safe, and the only one who may start and stop it meanwhile.

    Args:
        server: started.
        say: takes a line for each thing mended.
        config: see there.

    Attributes:
        reloaded, restarted: models reloaded and starts of the server, so far.
    """

    def __init__(
        self, server: EmbeddedServer, say: Callable[[str], None], config: SupervisorConfig | None = None
    ) -> None:
        self._server = server
        self._say = say
        self._config = config or SupervisorConfig()
        self._management = server.management()
        self._processes: dict[int, str] = {}
        self._canary_at_s = time.monotonic() + self._config.canary_every_s
        self._failures = 0
        self._starts_s: list[float] = []
        self._registrar = ThreadPoolExecutor(1, thread_name_prefix="insync-supervisor")
        self._asked: Future[bool] | None = None
        self._ask_at_s = time.monotonic() + self._config.registration_every_s
        self.reloaded = self.restarted = 0

    def watch(self) -> None:
        """One look. To be called several times a second; takes longer where something has to be mended.

        Raises:
            ServerError: the server dies again and again.
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
        elif stopped:  # where a model has several processes, frames go past one that does nothing: no canary tells
            self._reload(stopped, "its process was stopped")
        elif time.monotonic() >= self._canary_at_s:
            self._send_canary()
            self._canary_at_s = time.monotonic() + self._config.canary_every_s
        else:
            self._look_at_registrations()

    def _send_canary(self) -> None:
        before: dict[str, Counts] = {}
        try:
            before = self._management.counts()
            self._server.probe(self._config.canary_timeout_s)
        except ServerError as exc:
            self._judge(before, exc)
        else:
            self._failures = 0

    def _judge(self, before: Mapping[str, Counts], error: ServerError) -> None:
        """What to do about a canary that did not come back."""
        pid = self._server.pid
        if pid is None or any(state(process, pid) is State.GONE for process in self._processes):
            return  # seen by the next look
        if "RESOURCE_EXHAUSTED" in str(error):
            return  # other probes take all that there is for canaries: no sign of anything
        ill = _ILL.search(str(error))
        if ill is not None:
            self._reload({ill[1]}, "its process did not answer")
            return
        stuck = self._hanging(before) if before else None
        if stuck is not None:
            self._reload({stuck, *_CALLED.get(stuck, ())}, f"{stuck} hung")
            return
        if before and "Deadline Exceeded" in str(error) and self._answers_somebody(before):
            return  # it has too much to do
        self._failures += 1
        if self._failures >= _FAILURES:
            self._restart(str(error))

    def _hanging(self, before: Mapping[str, Counts]) -> str | None:
        """The model at which frames stand still; see `stalled_steps`. It is asked by itself, too: a server may just be slow."""
        with suppress(ServerError):  # Triton itself does not answer
            for model in stalled_steps(self._server.frame_steps, before, self._management.counts()):
                if not self._answers(model, self._config.canary_timeout_s):
                    return model
        return None

    def _answers_somebody(self, before: Mapping[str, Counts]) -> bool:
        """Whether ensembles have served frames since then."""
        with suppress(ServerError):
            after = self._management.counts()
            return any(after.get(name, _NONE).well > before.get(name, _NONE).well for name in ENSEMBLES)
        return False

    def _answers(self, model: str, timeout_s: float) -> bool:
        """Whether a model ends anything at all, ours or somebody else's."""
        before = self._management.counts().get(model, _NONE)
        try:
            self._management.answers(model, timeout_s)
        except ServerError:
            return self._management.counts().get(model, _NONE).ended > before.ended
        return True

    def _look_at_registrations(self) -> None:
        """`lipsync_twin` takes one registration after the other, for seconds each: it is asked from a thread."""
        if self._asked is None:
            if time.monotonic() >= self._ask_at_s:
                self._asked = self._registrar.submit(self._answers, "lipsync_twin", self._config.registration_timeout_s)
        elif self._asked.done():
            asked, self._asked = self._asked, None
            self._ask_at_s = time.monotonic() + self._config.registration_every_s
            with suppress(ServerError):  # no word from Triton at all: that is for the canary
                if not asked.result():
                    self._reload({"lipsync_twin", *_CALLED["lipsync_twin"]}, "lipsync_twin hung")

    def _reload(self, models: Collection[str], why: str) -> None:
        """Loads models anew. Whoever waits for one of their processes gets an error, and sends again."""
        started_s = time.monotonic()
        for process, model in self._processes.items():
            if (
                model in models and state(process, self._server.pid) is not State.GONE
            ):  # else its number may be somebody else's by now
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)  # Triton would wait for one that hangs
        names = ", ".join(sorted(models))
        try:
            for model in sorted(models):
                self._management.unload(model)
                self._management.load(model)
        except ServerError as exc:
            self._restart(f"{names} could not be reloaded ({exc})")
            return
        # Another model's process may have died meanwhile: it must not be forgotten.
        kept = {process: model for process, model in self._processes.items() if model not in models}
        self._processes = {**kept, **processes(self._server.pid)}
        self._canary_at_s = 0.0  # does it help?
        self.reloaded += len(models)
        self._say(f"{names} reloaded in {time.monotonic() - started_s:.1f} s: {why}")

    def _restart(self, why: str) -> None:
        started_s = time.monotonic()
        self._starts_s = [at for at in self._starts_s if started_s - at < self._config.window_s]
        if len(self._starts_s) >= self._config.restarts:
            raise ServerError(f"the server was started {len(self._starts_s)} times in vain: {why}")
        self._starts_s.append(started_s)
        self._processes, self._failures = {}, 0
        self._server.stop(drain=False)
        try:
            self._server.start()
        except ServerError as exc:
            self._say(f"the server did not start again: {exc}")  # the next look tries once more
            return
        self.restarted += 1
        self._say(f"the server was started again in {time.monotonic() - started_s:.1f} s: {why}")

    def _reason(self) -> str:
        try:
            self._server.check()
        except ServerError as exc:
            return str(exc)
        return "it did not start"


def stalled_steps(steps: Sequence[str], before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[str]:
    """The steps that may be holding up a frame.

    Args:
        steps: all that a frame passes, in order.
        before, after: of each model, before the frame was sent and after it did not come back.

    Returns:
        The steps that have ended nothing, in order. If one hangs it is the first: those behind it only wait.
    """
    return [step for step in steps if after.get(step, _NONE).ended <= before.get(step, _NONE).ended]
