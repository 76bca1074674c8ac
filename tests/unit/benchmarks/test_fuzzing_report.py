"""The report of fuzzing: runs are saved and added up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.fuzzing.admission import AdmissionCheck
from benchmarks.fuzzing.report import Result, Tally, load, report, save
from benchmarks.fuzzing.requests import KINDS
from benchmarks.fuzzing.transport import Health, Outcome


def test_runs_are_saved_and_added_up(tmp_path: Path) -> None:
    tallies = {kind.name: Tally() for kind in KINDS}
    tallies[KINDS[0].name] = Tally({"OK": 3, "INTERNAL": 1}, [(7, Outcome("INTERNAL", "it broke"))], {"INTERNAL": "it"})
    health = Health(frozenset({5, 6}), (1.5, 2.5), 3, 4, 5)
    gone = Health(frozenset({5}), (1.0, 0.0), 3, 4, 5)
    runs = [
        Result(1, tallies, 2, [], [(0, health), (4, health)], command="a"),
        Result(2, tallies, 1, ["after"], [(0, health), (4, gone)], command="b"),
    ]
    whole = AdmissionCheck(40, 4.9, 80, 80, 0, True)
    runs[0] = replace(runs[0], capacity=whole)
    assert whole.whole
    assert not replace(runs[0], tallies={}, capacity=replace(whole, newcomer=False)).good
    assert replace(runs[0], tallies={}).good
    for spoiled in ({"frames": 79}, {"refused": 1}, {"failure": "full"}, {"sent": 0, "frames": 0}):
        assert not replace(whole, **spoiled).whole
    save(runs, tmp_path / "runs.json")
    again = load(tmp_path / "runs.json")
    assert [(run.sent, run.all_alive, run.wrong) for run in again] == [
        (run.sent, run.all_alive, run.wrong) for run in runs
    ]
    assert [run.all_alive for run in again] == [True, False]
    assert [run.capacity for run in again] == [whole, None]
    report(again, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert f"| {KINDS[0].name} | 8 | 6 | 0 | 0 | 0 | 0 | INTERNAL 2 | 2 |" in text
    assert "was admitted, received 80 of its 80 frames, 0 requests refused" in text
    assert "Servers of which a process died: 1." in text
    assert "Well-formed requests meanwhile: 3, of which 1" in text
