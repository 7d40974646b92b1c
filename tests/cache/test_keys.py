"""Finding keys among others as arrays: the same as a dictionary finds."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_cache import make_rows

from cache import rows as keys_module
from cache.rows import Keys, find_keys
from stages.encode.images.sources.source import KeyList, key_array

# Short ones lie in the array itself, long ones elsewhere.
NAMES = st.lists(st.text("ab/ü漢😀", max_size=20), unique=True, max_size=40)


def as_keys(names: list[str]) -> Keys:
    return np.array(names, np.dtypes.StringDType())


@pytest.fixture(params=["hashes of their own", "hashes shared", "hardly any hash"])
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    real = keys_module._hashes
    if request.param != "hashes of their own":
        kinds = 5 if request.param == "hashes shared" else 1
        monkeypatch.setattr(keys_module, "_hashes", lambda keys: real(keys) % kinds)
    monkeypatch.setattr(keys_module, "PIECE", 7)


@pytest.mark.usefixtures("hashed")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, others=NAMES, seed=st.integers(0, 99))
def test_keys_are_found_where_they_are_whatever_is_likely(
    names: list[str], others: list[str], seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation([*names, *others]).tolist()
    among = list(dict.fromkeys(shuffled))[: len(shuffled) // 2 + 1]
    likely = np.random.default_rng(seed).integers(-5, 50, len(names))
    expected = [among.index(name) if name in among else -1 for name in names]
    assert find_keys(as_keys(names), as_keys(among), likely).tolist() == expected
    right = np.array(expected, np.int64)
    assert find_keys(as_keys(names), as_keys(among), right).tolist() == expected


def test_keys_in_pieces_have_the_fingerprint_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    content = "\0".join([*rows.classes, *rows.key.tolist()]).encode()
    content += rows.label.astype("<i4").tobytes()
    hashes = sha256(rows.content_hash.astype("<u8").tobytes()).digest()
    monkeypatch.setattr(keys_module, "PIECE", 4)
    assert rows.fingerprint == sha256(content + hashes).hexdigest()


def test_a_list_of_keys_is_a_sequence_of_strings() -> None:
    names = ["n1/ü 1.jpg", "n1/2.jpg", "n2/a name that is far longer than others.jpg"]
    keys = KeyList(as_keys(names))
    assert list(keys) == names
    assert (keys[2], keys[-3], len(keys), names[1] in keys) == (names[2], names[0], 3, True)
    assert list(keys[1:]) == names[1:]
    assert keys == KeyList(as_keys(names))
    assert keys != KeyList(as_keys(names[:2]))
    assert key_array(keys) is keys.array
    assert key_array(tuple(names)).tolist() == names
