"""Any losses, layers, objectives and solvers that fit together, and some that do not."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import assert_equal_runs, drawn_into, newest, trained

from pipeline.config import Config, load_config
from pipeline.exits import ConfigError

Table = dict[str, Any]
ENCODER, BLOCKS = "efficientnet-lite0", 4
FLAGS = st.booleans()
DEPTHS = st.integers(1, BLOCKS)
WEIGHTS = {
    "sigmoid": {"tau": st.floats(0.2, 1)},
    "hard": {"tau": st.floats(0.2, 1)},
    "cosine": {},
    "snr": {},
}
# Examples of what users do in few lines, for everyone; all else takes its time.
FEW, MANY = 4, 120
SLOWLY = {"suppress_health_check": list(HealthCheck), "deadline": None}


def entry(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Table]:
    """An entry of `[[train.align]]` with any of some fields; the others have their defaults."""
    return st.fixed_dictionaries({"kind": st.just(kind)}, optional=fields)


@st.composite
def alignments(draw: st.DrawFn, *, is_linear: bool, has_class_token: bool) -> Table:
    """An entry that compares tokens of the model with those of the encoder."""
    kinds = [kind for kind in WEIGHTS if is_linear or kind != "snr"]
    weights = [
        st.fixed_dictionaries({"kind": st.just(kind)}, optional=WEIGHTS[kind]) for kind in kinds
    ]
    own = draw(
        st.one_of(
            [
                entry("repa", class_token=st.just(has_class_token)),
                entry(
                    "irepa",
                    kernel=st.sampled_from([1, 3]),
                    projector=st.sampled_from(["conv", "mlp"]),
                    alpha=st.floats(0, 1),
                ),
                entry("nt-xent", temperature=st.floats(0.05, 1)),
                entry("token-similarity", pairs=st.sampled_from(["different", "all"])).map(
                    lambda own: own | {"shares_projector": False}
                ),
            ]
        )
    )
    shared = draw(
        st.fixed_dictionaries(
            {"encoder": st.just(ENCODER), "depth": DEPTHS, "projector_width": st.just(16)},
            optional={
                "time_weight": st.one_of(weights),
                "purify": FLAGS,
            },
        )
    )
    return own | shared | draw(ends())


@st.composite
def ends(draw: st.DrawFn) -> Table:
    """When a term ends, suddenly or not, if it does before the run."""
    until = draw(st.none() | st.integers(1, 3))
    return {} if until is None else {"until": until, "fade": draw(st.integers(0, until))}


@st.composite
def self_alignments(draw: st.DrawFn) -> Table:
    similarity = st.sampled_from(["smooth-l1", "cosine"])
    steps = st.integers(1, 3)
    own = draw(entry("sra", similarity=similarity, decay=steps, constant=steps))
    depth = draw(DEPTHS)
    return own | {"depth": depth, "teacher_depth": draw(st.integers(depth, BLOCKS))}


@st.composite
def trainings(draw: st.DrawFn) -> Table:
    """Keys of `[train]` that fit together."""
    is_sit = draw(st.integers(0, 5)) > 0
    keys: Table = {"model": "SiT-XS/2" if is_sit else "DiT-XS/2"}
    keys |= {name: draw(FLAGS) for name in ("qk_norm", "rotary", "value_residual")}
    keys["norm"] = draw(st.sampled_from(["layer", "rms", "rms-affine"]))
    keys["mlp"] = draw(st.sampled_from(["gelu", "swiglu"]))
    if is_sit:
        keys["interpolant"] = draw(st.sampled_from(["linear", "cosine"]))
        keys["times"] = draw(st.sampled_from(["uniform", "lognormal"]))
        keys |= draw(
            st.fixed_dictionaries({}, optional={"time_shift": st.sampled_from(["auto", 0.5, 2.0])})
        )
    keys["label_dropping"] = draw(st.sampled_from([0.0, 0.5]))
    keys["align"] = draw(terms(keys))
    if not any(_compares(term) for term in keys["align"]):
        keys["compute"] = {"micro_batches": draw(st.sampled_from([1, 2]))}
    return keys


def _compares(term: Table) -> bool:
    """Whether an image's loss depends on others of its batch."""
    return (
        term["kind"] in ("nt-xent", "contrastive", "dispersive")
        or term.get("purify", False)
        or "time_weight" in term
    )


@st.composite
def terms(draw: st.DrawFn, keys: Table) -> list[Table]:
    is_sit, is_linear = "interpolant" in keys, keys.get("interpolant") == "linear"
    joint = draw(st.sets(st.sampled_from(["class-token", "redi"]))) if is_sit else set()
    has_class_token = "class-token" in joint
    found = []
    if has_class_token:
        found.append({"kind": "class-token", "encoder": ENCODER})
    if "redi" in joint:
        drop = draw(st.sampled_from([0.0, 0.5]))
        modes = ["image", "legacy"] if drop else ["image"]
        mode = draw(st.sampled_from(modes))
        own = {"kind": "redi", "encoder": "pca4", "drop": drop, "drop_mode": mode}
        found.append(own | {"rescale": draw(FLAGS)})
    if is_linear and draw(FLAGS):
        negatives = st.sampled_from(["other", "other-class", "rolled"])
        own = draw(entry("contrastive", negatives=negatives, skip_unlabelled=FLAGS))
        found.append(own | draw(ends()))
    if is_sit and draw(FLAGS):
        found.append({"kind": "direction", **draw(ends())})
    free = [
        alignments(is_linear=is_linear, has_class_token=has_class_token),
        entry("dispersive", recipe=st.sampled_from(["jax", "torch"]), depth=DEPTHS),
        self_alignments(),
    ]
    found += draw(st.lists(st.one_of(free), max_size=3))
    return draw(st.permutations(found))


@st.composite
def samplings(draw: st.DrawFn, train: Table) -> Table:
    """Keys of `[sample]` that fit a run."""
    kinds = {term["kind"] for term in train["align"]}
    is_sit = train["model"].startswith("SiT")
    solvers = ["euler-maruyama", "euler", "heun", "dopri5"] if is_sit else ["ddpm", "ddim"]
    keys: Table = {"solver": draw(st.sampled_from(solvers))}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    if train["label_dropping"]:
        optional["guidance"] = st.just(2.0)
        optional["guided_channels"] = st.sampled_from([3, 4])
        if "class-token" in kinds:
            optional["class_guidance"] = st.just(1.5)
    if "redi" in kinds:
        optional["guide_components"] = FLAGS
        optional["representation_guidance"] = st.just(1.5)
    if is_sit and keys["solver"] != "dopri5":
        optional["time_shift"] = st.sampled_from(["auto", 2.0])
    return keys | draw(st.fixed_dictionaries({}, optional=optional))


COMBINATIONS = trainings().flatmap(lambda train: st.tuples(st.just(train), samplings(train)))


# What fits nothing, whatever else there is: keys, and what the refusal is of.
ALIGNED = {"encoder": ENCODER, "projector_width": 16, "depth": 1}
COSINE = {"model": "SiT-XS/2", "interpolant": "cosine"}
WRONG: list[tuple[Table, str]] = [
    ({"align": [{"kind": "class-token", "encoder": ENCODER}] * 2}, "at most"),
    ({"align": [{"kind": "redi", "encoder": ENCODER}]}, "make a section [components.NAME]"),
    ({"align": [{"kind": "class-token", "encoder": "nobody"}]}, "has no section"),
    ({"align": [{"kind": "repa", **ALIGNED, "depth": BLOCKS + 1}]}, "has 4 blocks, got 5"),
    ({"align": [{"kind": "repa", **ALIGNED, "fade": 2}]}, "there is no until"),
    ({"align": [{"kind": "irepa", **ALIGNED, "class_token": True}]}, "is undefined"),
    ({"align": [{"kind": "repa", **ALIGNED, "temperature": 1.0}]}, "temperature"),
    ({"align": [{"kind": "token-similarity", **ALIGNED}]}, "whose projector it could share"),
    ({"align": [{"kind": "sra", "depth": 3, "teacher_depth": 2}]}, "comes before the model's"),
    ({"align": [{"kind": "dispersive"}], "batch_size": 1}, "needs 2"),
    (
        {"align": [{"kind": "dispersive"}], "compute": {"micro_batches": 2}},
        "needs the whole batch at once",
    ),
    ({"model": "DiT-XS/2", "align": [{"kind": "direction"}]}, "is for SiT"),
    ({"model": "DiT-XS/2", "align": [{"kind": "contrastive"}]}, "is for SiT"),
    ({"model": "DiT-XS/2", "interpolant": "cosine"}, "has a schedule of its own"),
    ({**COSINE, "align": [{"kind": "contrastive"}]}, "on which an image has"),
    (
        {
            **COSINE,
            "align": [{"kind": "repa", **ALIGNED, "time_weight": {"kind": "snr"}}],
        },
        "is that of the linear path",
    ),
]


def toml(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def overrides(section: str, keys: Table) -> list[str]:
    return [f"{section}.{key}={toml(value)}" for key, value in keys.items()]


@contextmanager
def empty_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def check_combination(built: Path, train: Table, sample: Table) -> None:
    """Two steps at once are two one by one, and images can be drawn of them."""
    chosen = [*overrides("train", train), *overrides("sample", sample)]
    chosen += ["train.steps=2", "train.checkpoint_every=1", "sample.images=2"]

    def configured(*more: str) -> Config:
        return load_config(built / "pipeline.toml", [*chosen, *more])

    with empty_folder() as folder:
        whole = configured(f"train.run={folder / 'whole'}")
        trained(whole)
        parts = f"train.run={folder / 'parts'}"
        trained(configured(parts, "train.steps=1"))
        assert newest(configured(parts)).step == 1
        trained(configured(parts))
        assert_equal_runs(configured(parts), whole)
        assert drawn_into(folder / "drawn", whole).images == 2


@given(combination=COMBINATIONS)
@settings(max_examples=FEW, derandomize=True, **SLOWLY)
def test_what_fits_together_is_trained_resumed_and_sampled(
    built_with_components: Path, combination: tuple[Table, Table]
) -> None:
    check_combination(built_with_components, *combination)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(combination=COMBINATIONS)
@settings(max_examples=MANY, **SLOWLY)
def test_much_that_fits_together_is_trained_resumed_and_sampled(
    built_with_components: Path, combination: tuple[Table, Table]
) -> None:
    check_combination(built_with_components, *combination)


@given(combination=COMBINATIONS, wrong=st.sampled_from(WRONG))
@settings(max_examples=100, derandomize=True, **SLOWLY)
def test_what_does_not_is_refused_before_anything_is_written(
    built_with_components: Path, combination: tuple[Table, Table], wrong: tuple[Table, str]
) -> None:
    (train, sample), (keys, said) = combination, wrong
    train = train | keys | {"align": [*train["align"], *keys.get("align", [])]}
    with empty_folder() as folder:
        chosen = [*overrides("train", train), *overrides("sample", sample)]
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config(
                built_with_components / "pipeline.toml", [*chosen, f"train.run={folder / 'run'}"]
            )
        assert not list(folder.iterdir())
