"""Tags, chapters, subtitles, language and timecode go with a video; what cannot go is named."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.support.media import corners, tone, write_wav

from insync.client.media.audio_reader import AudioFile
from insync.client.media.reader import VideoFile
from insync.client.media.writer import VideoWriter

TITLES = [("Opening", 0, 400), ("Middle", 400, 800), ("End", 800, 1200)]


def film(path: Path, subtitles: str | None = None) -> Path:
    with av.open(str(path), "w") as container:
        container.metadata.update(
            {"title": "A film", "date": "2024-05-06", "artist": "Somebody", "comment": "own words"}
        )
        container.set_chapters(
            [
                {"id": n, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                for n, (title, start, end) in enumerate(TITLES)
            ]
        )
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.metadata["language"] = "jpn"
        if path.suffix == ".mov":
            stream.metadata["timecode"] = "01:02:03:04"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.roll(corners(), number, axis=1), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path if subtitles is None else with_subtitles(path, subtitles)


def with_subtitles(path: Path, codec: str) -> Path:
    """Add a subtitle track of two lines."""
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:00,100 --> 00:00:00,500\nHello\n\n2\n00:00:00,600 --> 00:00:01,000\nthere\n")
    out = path.with_name(f"subtitled{path.suffix}")
    with av.open(str(path)) as source, av.open(str(text)) as words, av.open(str(out), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        assert codec == "subrip"
        lines = target.add_stream_from_template(words.streams.subtitles[0])
        lines.metadata["language"] = "eng"
        for packets, stream in ((words.demux(), lines), (source.demux(video=0), video)):
            for packet in packets:
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    return out


def dubbed(source: Path, out: Path, tmp_path: Path, end_s: Fraction | None = None) -> list[str]:
    video, audio = VideoFile(source), AudioFile(write_wav(tmp_path / "new.wav", tone(1.2, 16_000)))
    audio.language = "deu"
    with VideoWriter(out, video, audio, "low", provenance=True, end_s=end_s) as writer:
        for frame in video.frames():
            writer.write(frame.frame, frame.pts)
        writer.write_audio(None)
    return writer.notes


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_chapters_and_languages_are_kept(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    assert dubbed(film(tmp_path / "film.mkv"), out, tmp_path) == []
    with av.open(str(out)) as result:
        tags = {name.lower(): value for name, value in result.metadata.items()}
        assert tags["title"] == "A film"
        assert tags["artist"] == "Somebody"
        assert tags["date"].startswith("2024")
        assert "AI-generated" in tags["comment"]
        assert "own words" in tags["comment"]
        kept = [(c["metadata"]["title"], round(1000 * c["start"] * c["time_base"])) for c in result.chapters()]
        assert kept == [(title, start) for title, start, _ in TITLES]
        assert result.streams.audio[0].language == ("ger" if suffix == ".mov" else "deu")
        assert result.streams.video[0].language == "jpn"


def test_chapters_after_a_cut_are_left_out(tmp_path: Path) -> None:
    dubbed(film(tmp_path / "film.mkv"), tmp_path / "out.mkv", tmp_path, end_s=Fraction(1, 2))
    with av.open(str(tmp_path / "out.mkv")) as result:
        assert [c["metadata"]["title"] for c in result.chapters()] == ["Opening", "Middle"]


def test_a_timecode_is_kept(tmp_path: Path) -> None:
    assert dubbed(film(tmp_path / "film.mov"), tmp_path / "out.mov", tmp_path) == []
    with av.open(str(tmp_path / "out.mov")) as result:
        assert "01:02:03:04" in [s.metadata.get("timecode") for s in result.streams]


def test_subtitles_are_copied_where_the_container_holds_them(tmp_path: Path) -> None:
    source = film(tmp_path / "film.mkv", "subrip")
    assert dubbed(source, tmp_path / "out.mkv", tmp_path) == []
    with av.open(str(tmp_path / "out.mkv")) as result:
        (track,) = result.streams.subtitles
        assert track.language == "eng"
        packets = [(float(p.pts * p.time_base), bytes(p)) for p in result.demux(track) if p.size]
    assert [at for at, _ in packets] == [0.1, 0.6]
    assert [text for _, text in packets] == [b"Hello", b"there"]


def test_subtitles_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    (note,) = dubbed(film(tmp_path / "film.mkv", "subrip"), tmp_path / "out.mp4", tmp_path)
    assert "subtitles (srt) are left out" in note
