"""Cases of a test of which some are for everyone, and the others for those who have time."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def few_fast(cases: Iterable[Any], fast: int = 1) -> Sequence[Any]:
    """The values of one parameter, of which all but the first so many are marked slow."""
    return [
        pytest.param(case, marks=[pytest.mark.slow] if number >= fast else [])
        for number, case in enumerate(cases)
    ]
