import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cache.storage import FLOAT_STORAGES, STORAGES, Int8

TOKENS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def through(name: str, tokens: np.ndarray) -> np.ndarray:
    storage = STORAGES[name]
    constants = storage.measure(tokens)
    return storage.decode("tokens", storage.encode("tokens", tokens, constants), constants)


def random_tokens() -> np.ndarray:
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.normal(size=64))
    return (generator.normal(size=(8, 16, 64)) * sizes).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / norms


@settings(max_examples=200)
@given(TOKENS)
def test_an_int8_value_comes_back_within_half_a_step(tokens: np.ndarray) -> None:
    int8 = STORAGES["int8"]
    constants = int8.measure(tokens)
    stored = int8.encode("tokens", tokens, constants)
    assert stored["tokens"].dtype == np.int8
    assert np.abs(stored["tokens"].astype(int)).max() <= 127
    step = stored["token_scale"].astype(np.float64)[..., None] * constants["channel_scale"]
    error = np.abs(int8.decode("tokens", stored, constants).astype(np.float64) - tokens)
    # The decoder's own rounding, in float32, comes on top.
    assert (error <= 0.5 * step * (1 + 1e-4)).all()


@settings(max_examples=50)
@given(TOKENS)
def test_a_float16_value_comes_back_within_its_precision(tokens: np.ndarray) -> None:
    np.testing.assert_allclose(through("float16", tokens), tokens, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("name", FLOAT_STORAGES)
def test_tensors_and_arrays_are_stored_as_the_same_bytes(name: str) -> None:
    storage, tokens = STORAGES[name], random_tokens()
    constants = storage.measure(tokens)
    there = storage.measure(torch.from_numpy(tokens))
    assert tuple(constants) == tuple(there) == storage.constants
    for key, value in constants.items():
        np.testing.assert_allclose(there[key].numpy(), value, rtol=1e-6)
    shared = {key: torch.from_numpy(value) for key, value in constants.items()}
    stored = storage.encode("tokens", tokens, constants)
    peer = storage.encode("tokens", torch.from_numpy(tokens), shared)
    assert next(iter(stored)) == "tokens"
    for key, value in stored.items():
        np.testing.assert_array_equal(peer[key].numpy(), value)
    np.testing.assert_array_equal(
        storage.decode("tokens", peer, shared).numpy(), storage.decode("tokens", stored, constants)
    )


@pytest.mark.parametrize("name", FLOAT_STORAGES)
def test_directions_are_the_tokens_up_to_a_factor(name: str) -> None:
    storage, tokens = STORAGES[name], random_tokens()
    constants = storage.measure(tokens)
    stored = storage.encode("tokens", tokens, constants)
    directions = storage.directions(stored["tokens"], constants)
    decoded = storage.decode("tokens", stored, constants)
    np.testing.assert_allclose(cosine(directions, decoded), 1, rtol=1e-6)


def test_channels_and_tokens_of_zeros_stay_zero() -> None:
    tokens = random_tokens()
    tokens[:, :, 3] = 0
    tokens[2, 5] = 0
    decoded = through("int8", tokens)
    assert (decoded[:, :, 3] == 0).all()
    assert (decoded[2, 5] == 0).all()


def test_int8_keeps_the_direction_of_tokens_with_very_uneven_channels() -> None:
    tokens = random_tokens()
    decoded = through("int8", tokens)
    assert cosine(decoded, tokens).mean() > 0.9999
    # One scale per token alone would lose the small channels.
    plain = Int8().encode("tokens", tokens, {"channel_scale": np.ones(64, np.float32)})
    worse = Int8().decode("tokens", plain, {"channel_scale": np.ones(64, np.float32)})
    assert np.abs(worse - tokens)[..., 0].mean() > np.abs(decoded - tokens)[..., 0].mean()
