"""The rate at which streams send to an overloaded server, with a simulated clock."""

from __future__ import annotations

from insync.client.streaming.frame_dropping import FrameDropper
from insync.client.transport.pacing import Pacer


def test_the_pacer_does_not_limit_until_refused_and_finds_the_rate() -> None:
    pacer, now_s = Pacer(), 50.0
    assert [pacer.slot(now_s) for _ in range(5)] == [now_s] * 5
    # A server that processes 10 frames/s, one at a time.
    room_s, taken, refused = now_s, 0, 0
    while now_s < 150:
        now_s = pacer.slot(now_s)
        if now_s >= room_s:
            room_s = max(room_s, now_s - 0.1) + 0.1
            taken += 1
            pacer.passed()
        else:
            refused += 1
            pacer.refused(now_s, room_s - now_s)
    assert taken > 850
    assert refused < taken


def live(streams: int, fps: float, deadline_s: float, served_fps: float, dropping: bool) -> int:
    """Return the number of frames in time in 100 simulated seconds of a server with two steps, first come first served.

    The server drops a frame whose client has given up, but only between the steps.
    """
    step_s, ends_s = 1 / served_fps / 2, 100.0
    droppers = [FrameDropper(fps, deadline_s) for _ in range(streams)]
    cameras = sorted((k / fps + n / fps / streams, n) for n in range(streams) for k in range(int(ends_s * fps)))
    steps: list[list[tuple[float, int]]] = [[], []]
    now_s, in_time_count = 0.0, 0
    while now_s < ends_s:
        while cameras and cameras[0][0] <= now_s:
            ready_s, stream = cameras.pop(0)
            if not dropping or droppers[stream].due(ready_s):
                steps[0].append((ready_s, stream))
        for step in steps:
            for frame in [frame for frame in step if now_s - frame[0] > deadline_s]:
                step.remove(frame)
                droppers[frame[1]].late(now_s)
        work = min((0, 1), key=lambda k: steps[k][0] if steps[k] else (ends_s, k))
        now_s += step_s
        if steps[work]:
            ready_s, stream = steps[work].pop(0)
            if work == 0:
                steps[1].append((ready_s, stream))
            elif now_s - ready_s <= deadline_s:
                in_time_count += 1
                droppers[stream].in_time()
            else:
                droppers[stream].late(now_s)
    return in_time_count


def test_a_live_stream_sends_only_frames_that_return_in_time() -> None:
    enough = live(4, 5, 0.5, served_fps=30, dropping=True)
    assert enough == live(4, 5, 0.5, served_fps=30, dropping=False) >= 1990
    # Other work uses half of the capacity: of 20 frames/s requested, the server processes 10.
    assert live(4, 5, 0.5, served_fps=10, dropping=True) > 600
    assert live(4, 5, 0.5, served_fps=10, dropping=False) < 100
