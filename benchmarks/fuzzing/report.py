"""Outcomes of fuzzing: counts by class, saved as JSON from run to run, and the report of all runs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import reports
from benchmarks.fuzzing.admission import AdmissionCheck
from benchmarks.fuzzing.requests import KINDS
from benchmarks.fuzzing.transport import NO_CAPACITY, Health, Outcome
from insync.ensemble.models.admission import LEASE_S

LEFT = ("left", "closed")


@dataclass
class Tally:
    """Outcomes of the requests of one class."""

    codes: dict[str, int] = field(default_factory=dict)
    wrong: list[tuple[int, Outcome]] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One run against one server.

    Attributes:
        seed: of the requests.
        tallies: by class.
        checks: number of well-formed requests sent meanwhile.
        damaged: those of them whose response differed from the first one, or that failed.
        healths: number of requests sent, and the server's processes then: before the first, and after every part.
        died: how the server ended; empty if it is still alive.
        command: the command line of the run.
        capacity: the live stream that requests the whole capacity at the end; None: the server had no limit.
    """

    seed: int
    tallies: dict[str, Tally]
    checks: int
    damaged: list[str]
    healths: list[tuple[int, Health]]
    died: str = ""
    command: str = ""
    capacity: AdmissionCheck | None = None

    @property
    def sent(self) -> int:
        """Number of malformed requests."""
        return sum(sum(tally.codes.values()) for tally in self.tallies.values())

    @property
    def wrong(self) -> list[tuple[str, int, Outcome]]:
        """Class, number and outcome of every request without a response, or with an unexpected one."""
        return [(name, number, outcome) for name, tally in self.tallies.items() for number, outcome in tally.wrong]

    @property
    def all_alive(self) -> bool:
        """Whether all processes of the start are still alive, and there are no others."""
        return not self.died and all(one.pids == self.healths[0][1].pids for _, one in self.healths)

    @property
    def good(self) -> bool:
        """Whether no process died, every request had an expected outcome, and the whole capacity is free."""
        return self.all_alive and not self.wrong and not self.damaged and (self.capacity is None or self.capacity.whole)


def save(results: list[Result], path: Path) -> None:
    """Save runs, so that others can be added. Of process ids only whether they are those of the start is kept."""
    kept = [asdict(result) for result in results]
    for run in kept:
        first = run["healths"][0][1]["pids"]
        for _, health in run["healths"]:
            health["pids"] = [] if health["pids"] == first else [1]
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False, default=list) + "\n")


def load(path: Path) -> list[Result]:
    """Load runs that `save` wrote."""

    def tally(kept: dict[str, Any]) -> Tally:
        wrong = [(number, Outcome(**outcome)) for number, outcome in kept["wrong"]]
        return Tally(kept["codes"], wrong, kept["examples"])

    def health(kept: dict[str, Any]) -> Health:
        return Health(**{**kept, "pids": frozenset(kept["pids"]), "memory_mb": tuple(kept["memory_mb"])})

    return [
        Result(
            **{
                **run,
                "tallies": {name: tally(kept) for name, kept in run["tallies"].items()},
                "healths": [(sent, health(kept)) for sent, kept in run["healths"]],
                "capacity": AdmissionCheck(**run["capacity"]) if run.get("capacity") else None,
            }
        )
        for run in json.loads(path.read_text())
    ]


def _growth(result: Result) -> str:
    """Describe how memory grew after the first fifth of the requests."""
    early = result.healths[min(2, len(result.healths) - 1)]
    (start, before), (end, after) = early, result.healths[-1]
    grown = [
        f"{name} {late - first:+.0f} MB ({(late / first - 1) * 100 if first else 0:+.1f} %)"
        for name, first, late in zip(("the server", "the models"), before.memory_mb, after.memory_mb, strict=True)
    ]
    return f"from request {start:,} to {end:,}, {', '.join(grown)}"


def _admission_checks(results: list[Result]) -> str:
    """Describe the live streams that requested the whole capacity at the end."""
    limited = [result for result in results if result.capacity is not None]
    if not limited:
        return ""
    return (
        "The server's limit was set (`INSYNC_CAPACITY_FPS`), and the well-formed requests were frames of a live stream: a "
        "refused one counts as a changed response. Capacity of streams that were not ended is released after "
        f"{LEASE_S:g} s without a request: " + "; ".join(str(result.capacity) for result in limited) + "."
    )


def report(results: list[Result], path: Path) -> None:
    """Write the report of all runs."""
    rows = []
    for kind in KINDS:
        tallies = [result.tallies[kind.name] for result in results]
        codes = Counter[str]()
        for tally in tallies:
            codes.update(tally.codes)
        total = sum(codes.values())
        named = [codes.pop(code, 0) for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", NO_CAPACITY)]
        left = sum(codes.pop(code, 0) for code in LEFT)
        others = ", ".join(f"{code} {n}" for code, n in sorted(codes.items()))
        wrong = sum(len(tally.wrong) for tally in tallies)
        rows.append([kind.name, *(f"{n:,}" for n in (total, *named, left)), others, str(wrong)])
    header = [
        "class",
        "sent",
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        NO_CAPACITY,
        "closed early",
        "others",
        "unexpected",
    ]
    sums = [sum(int(row[k].replace(",", "")) for row in rows) for k in (1, 2, 3, 4, 5, 6, 8)]
    rows.append(["all", *(f"{n:,}" for n in sums[:6]), "", str(sums[6])])
    states = [
        [
            f"{result.seed}",
            f"{sent:,}",
            *(f"{megabytes:.0f}" for megabytes in health.memory_mb),
            *(str(count) for count in (health.files, health.threads, health.shared)),
        ]
        for result in results
        for sent, health in result.healths
    ]
    columns = ["seed", "sent", "server, MB", "models, MB", "file descriptors", "threads", "shared memory regions"]
    examples: dict[tuple[str, str], str] = {}
    for result in results:
        for name, tally in result.tallies.items():
            for code, text in tally.examples.items():
                if text and code != "OK":
                    examples.setdefault((name, code), text.splitlines()[0][:200])
    sent, checks = sum(result.sent for result in results), sum(result.checks for result in results)
    died = sum(not result.all_alive for result in results)
    servers = "one embedded server" if len(results) == 1 else f"{len(results)} embedded servers, one after the other"
    reports.write(
        path,
        "Fuzzing",
        "`, `".join(result.command for result in results),
        [
            f"{sent:,} malformed requests to {servers}, several at a time, over gRPC, HTTP and plain TCP, to every served "
            f"model, of all {len(KINDS)} classes below. Servers of which a process died: {died}. Requests without a response, "
            f"or with an unexpected one: {sum(len(r.wrong) for r in results)}. Well-formed requests meanwhile: {checks:,}, "
            f"of which {sum(len(r.damaged) for r in results)} had another response than before the first malformed request.",
            "*OK*: the change does not matter to the model, as a flipped bit in a pixel, or a whole frame without a hint. "
            "*closed early*: the client closed the connection, as requests of that class do, or the server closed a "
            f"connection that sent no valid request. *{NO_CAPACITY}*: a server with a limit refused the request and told when "
            "to retry. *unexpected*: the request hung, killed the server, failed without a reason in the message, or "
            "succeeded where it must not.",
            _admission_checks(results),
            reports.table(header, rows),
            "The servers' processes. Memory grows quickly until every model has received its largest input, and slowly after that: "
            f"{'; '.join(_growth(result) for result in results)}.",
            reports.table(columns, states),
            "The first message of each class and code:",
            "\n".join(f"- {name}: {code}: {text}" for (name, code), text in sorted(examples.items())),
        ],
    )
