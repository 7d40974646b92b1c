"""Errors keep what is wrong, where, and what to do apart, and say all of it in one message."""

import pickle
from pathlib import Path

from cache.errors import DamagedCacheError, RepaCacheError, StaleCacheError


def test_a_message_says_where_what_and_what_to_do() -> None:
    error = StaleCacheError("its recipe differs", where=Path("a.zarr"), remedy="Build it anew.")
    assert str(error) == "a.zarr: its recipe differs. Build it anew."
    assert (error.where, error.what, error.remedy) == ("a.zarr", "its recipe differs", error.remedy)
    assert str(StaleCacheError("It differs", remedy="Build it.")) == "It differs. Build it."


def test_a_plain_sentence_stays_as_it_is() -> None:
    assert str(RepaCacheError("There is no disk.")) == "There is no disk."


def test_damage_is_mended_in_one_way_unless_it_says_otherwise() -> None:
    assert str(DamagedCacheError("torn", where="x")) == "x: torn. Run `repa-cache build --repair`."
    assert str(DamagedCacheError("torn", remedy="Look at the disk.")) == "torn. Look at the disk."


def test_errors_of_other_processes_arrive_whole() -> None:
    for remedy in ("Build it anew.", None):
        sent = DamagedCacheError("torn", where="x", remedy=remedy)
        arrived = pickle.loads(pickle.dumps(sent))
        assert (str(arrived), vars(arrived)) == (str(sent), vars(sent))
