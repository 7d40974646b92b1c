import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.recipe import (
    DECLARED_DEFAULTS,
    canonical_json,
    differences,
    fingerprint,
    recipe_differences,
    written,
)

RECIPES = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(), st.booleans(), st.text(max_size=5)), max_size=5
)


@given(RECIPES)
def test_the_order_of_fields_does_not_change_a_fingerprint(recipe: dict[str, object]) -> None:
    turned = dict(reversed(recipe.items()))
    assert fingerprint(turned) == fingerprint(recipe)


@given(RECIPES, RECIPES)
def test_recipes_without_differences_are_those_with_equal_fingerprints(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert (not differences(one, other)) == (fingerprint(one) == fingerprint(other))


def test_differences_name_the_field_and_both_values() -> None:
    assert differences({"a": 1, "b": "x"}, {"a": 2, "c": None, "b": "x"}) == [
        "a: cache 1, configuration 2",
        "c: cache nothing, configuration null",
    ]


def test_a_recipe_holds_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"value": float("nan")})


def test_a_field_with_its_declared_default_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DECLARED_DEFAULTS, "b", [1])
    assert written({"a": 1, "b": [1]}) == {"a": 1}
    assert written({"a": 1, "b": [2]}) == {"a": 1, "b": [2]}
    assert fingerprint({"a": 1, "b": [1]}) == fingerprint({"a": 1})
    assert recipe_differences({"a": 1}, {"a": 1, "b": [1]}) == []
    assert recipe_differences({"a": 1, "b": [2]}, {"a": 1}) == ["b: cache [2], configuration [1]"]
    assert recipe_differences({"a": 1}, {"a": 2}) == ["a: cache 1, configuration 2"]
