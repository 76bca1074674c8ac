"""Which results of benchmarks are comparable."""

from __future__ import annotations

import pytest

from benchmarks.reports import comparable
from insync.loadtest.measure.machine import describe

EARLIER = "x86_64, 2 cores (AVX-512), 24 GiB, no GPU used; Python 3.11.7, numpy 1.26.4, av 18.1.0"


@pytest.mark.parametrize(
    ("other", "expected"),
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
    ids=["same description", "more packages named", "other cores", "other Python", "other package"],
)
def test_results_are_comparable(other: str, expected: bool) -> None:
    assert comparable(EARLIER, other) is expected
    assert comparable(other, EARLIER) is expected


def test_results_of_this_machine_are_comparable() -> None:
    description = describe()
    assert comparable(description, description)
    assert not comparable(description, description.replace("Python 3", "Python 4"))
