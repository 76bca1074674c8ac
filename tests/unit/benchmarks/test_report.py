"""Which figures a benchmark may hold against each other."""

from __future__ import annotations

import pytest

from benchmarks.reports import alike
from insync.loadtest.measure.machine import describe

EARLIER = "x86_64, 2 cores (AVX-512), 24 GiB, no GPU used; Python 3.11.7, numpy 1.26.4, av 18.1.0"


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (EARLIER, True),
        (
            "x86_64, 2 cores (AVX-512), 24 GiB; Python 3.11.7, insync 0.1.0, numpy 1.26.4, av 18.1.0, locust 2.47.0",
            True,
        ),
        ("x86_64, 4 cores (AVX-512), 24 GiB; Python 3.11.7, numpy 1.26.4, av 18.1.0", False),
        ("x86_64, 2 cores (AVX-512), 24 GiB; Python 3.12.1, numpy 1.26.4, av 18.1.0", False),
        ("x86_64, 2 cores (AVX-512), 24 GiB; Python 3.11.7, numpy 1.26.5, av 18.1.0", False),
    ],
    ids=["same words", "more packages named", "other cores", "other Python", "other package"],
)
def test_figures_are_alike(other: str, wanted: bool) -> None:
    assert alike(EARLIER, other) is wanted
    assert alike(other, EARLIER) is wanted


def test_this_machine_is_like_itself() -> None:
    words = describe()
    assert alike(words, words)
    assert not alike(words, words.replace("Python 3", "Python 4"))
