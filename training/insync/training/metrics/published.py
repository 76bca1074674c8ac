"""Published results of other lip-sync methods, shown next to our own table. They are not directly comparable with ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a published table.

    Attributes:
        method: name of the method.
        fid: Fréchet distance of the faces, smaller is better; None if not published.
        csim: cosine of a face recognition network's features with the source's, larger is better.
        lse_c: SyncNet's confidence (Chung & Zisserman, 2016), larger is better.
    """

    method: str
    fid: float | None = None
    csim: float | None = None
    lse_c: float | None = None


TALK = "InSyncVideo (talk, GTC 2025)"
ROWS = (
    Published(TALK),
    Published("Wav2Lip", 11.55, 0.84, 7.42),
    Published("VideoReTalking", 11.29, 0.80, 7.59),
    Published("DINet", 6.94, 0.80, 5.96),
    Published("IP-LAP", 10.16, 0.86, 4.47),
    Published("LatentSync", 8.41, 0.84, 7.90),
    Published("MuseTalk", 6.52, 0.86, 6.53),
    Published("filmed", 0.0, 1.0, 7.73),
)
SOURCE = (
    "Measured by others, on other data: 26 videos of HDTF with speech that is not their own, by Zhang et al. (MuseTalk: Real-Time High-Fidelity "
    "Video Dubbing via Spatio-Temporal Sampling, arXiv:2410.10122, table 1; taken from a transcription of that table in a public review, the "
    "paper itself was not available). The table shown in the talk was not found in any available source: its row is empty, and the six "
    "methods replace the five others in it."
)
OURS = (
    "The last row is from this run. It is not comparable with the rows above: other people and videos, our own SyncNet, whose distances are in [0, 2] "
    "while those of the others reach 15, and our own appearance similarity instead of a face recognition network."
)


def table(ours: Published) -> list[list[str]]:
    """Return the header, alignment and cells of a table with the published rows and our row."""
    cells = [
        [row.method, *("–" if value is None else f"{value:.2f}" for value in (row.fid, row.csim, row.lse_c))]
        for row in (*ROWS, ours)
    ]
    return [["method", "FID", "CSIM", "LSE-C"], ["---", "---:", "---:", "---:"], *cells]
