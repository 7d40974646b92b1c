"""Settings of a run in their former form: one kind for all alignments."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# The keys of the former form, with their defaults.
DEFAULTS: Mapping[str, Any] = {
    "encoders": (),
    "encoder_weights": {},
    "alignment": "repa",
    "temperature": 0.1,
    "depth": 8,
    "weight": 0.5,
    "align_until": None,
    "projector_width": 2048,
}


def in_todays_form(train: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, of either form, with a list of alignments."""
    kept = {key: value for key, value in train.items() if key not in DEFAULTS}
    if "align" in train or kept.keys() == train.keys():
        return kept
    return {**kept, "align": _entries({**DEFAULTS, **train})}


def _entries(former: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An entry for each encoder; the weight was that of the mean of their losses."""
    share = former["weight"] / max(len(former["encoders"]), 1)
    options = {"temperature": former["temperature"]} if former["alignment"] == "nt-xent" else {}
    return [
        {
            "kind": former["alignment"],
            "encoder": encoder,
            "depth": former["depth"],
            "weight": share * former["encoder_weights"].get(encoder, 1.0),
            "until": former["align_until"],
            "projector_width": former["projector_width"],
            **options,
        }
        for encoder in former["encoders"]
    ]


def lines_instead(train: Mapping[str, Any]) -> str | None:
    """What is to be written for settings of that form, if any are given."""
    given = [key for key in train if key in DEFAULTS]
    if not given:
        return None
    lines = "\n".join(_lines(train)) or "    (nothing: without entries there is no alignment)"
    return (
        f"train: alignments are a list, with an entry for each. Write instead of "
        f"{', '.join(given)}, behind the rest of [train]:\n{lines}"
    )


def _lines(train: Mapping[str, Any]) -> Iterator[str]:
    """The entries in TOML, without what is the default."""
    for entry in _entries({**DEFAULTS, **train}):
        yield "    [[train.align]]"
        for key, value in entry.items():
            if key in ("kind", "encoder") or value not in (None, DEFAULTS.get(key)):
                yield f"    {key} = {json.dumps(value)}"
