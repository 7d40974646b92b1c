"""`import repa_cache`: caches, batches, data sets and commands, from any folder."""

import gc
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marking import few_fast
from places import ROOT
from runs import cached_batches
from tiny import TINY, write_images
from torch.utils.data import DataLoader, Dataset

import repa_cache
from cache.metadata import read_column
from pipeline.config import Config
from stages.placement import Placement
from stages.train.randomness import Randomness

ENCODER = "efficientnet-lite0"
NAMES = ("cache", "pipeline", "stages")
# What the script `repa-cache` holds.
PROGRAM = (
    "import sys\nfrom repa_cache import app\nif __name__ == '__main__':\n    sys.exit(app())\n"
)


@pytest.fixture
def cache(built: Path) -> repa_cache.Cache:
    return repa_cache.open(str(built / "tiny.zarr"))


def run_python(*arguments: str | Path, cwd: Path, path: str = str(ROOT)) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_behind_the_door_is_there() -> None:
    commands = {"run", "cknna", "compare", "losses", "probe"}
    assert commands <= set(dir(repa_cache))
    assert all(callable(getattr(repa_cache, name)) for name in repa_cache.LATER)


def tensors_of(batch: repa_cache.Batch) -> dict[str, Any]:
    """What it holds, and the latents, which it draws."""
    held = {one.name: getattr(batch, one.name) for one in fields(batch) if one.compare}
    return {**held, "latents": batch.latents}


def assert_same(one: Any, other: Any) -> None:
    """That two batches or items are equal, to the bit."""
    one, other = (tensors_of(x) if isinstance(x, repa_cache.Batch) else x for x in (one, other))
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import repa_cache, sys; repa_cache.Error; dir(repa_cache); print(*sys.modules, sep='\\n')"
    )
    packages = {name.partition(".")[0] for name in run_python("-c", program, cwd=tmp_path).split()}
    assert packages & {"torch", "timm", "zarr", "numpy", "pydantic", "typer"} == set()


def test_opening_and_reading_import_no_torch(built: Path) -> None:
    program = (
        "import repa_cache, sys; cache = repa_cache.open('tiny.zarr'); repr(cache); "
        f"print(cache['{ENCODER}'].tokens[0].dtype, 'torch' in sys.modules)"
    )
    assert run_python("-c", program, cwd=built).split() == ["float32", "False"]


def test_a_cache_tells_what_it_holds(cache: repa_cache.Cache) -> None:
    assert len(cache) == len(cache.labels) == len(cache.keys) == 21
    assert cache.labels.dtype == np.int32
    assert cache.classes == ("class0", "class1", "class2")
    assert cache.encoders == (ENCODER,)
    assert cache.keys[0].startswith("class")
    head, *columns = repr(cache).splitlines()
    assert head.endswith("tiny.zarr'): 21 rows, 3 classes")
    assert columns == [
        "  latents/tiny-vae: float16, complete",
        f"  features/{ENCODER}: float16, complete",
    ]


def test_its_repr_tells_what_is_missing_and_what_is_damaged(
    tiny: Callable[..., Config],
) -> None:
    config = tiny()
    repa_cache.build(config)
    shard = read_column(config.cache.path, "latents/tiny-vae", 21).folder / "ledger/c.1.0"
    shard.unlink()
    (config.cache.path / "features" / ENCODER / "zarr.json").write_text("{}")
    shown = repr(repa_cache.open(config.cache.path))
    assert "latents/tiny-vae: float16, 2 of 3 shards" in shown
    assert f"features/{ENCODER}: damaged" in shown


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_rows_are_numbers_by_any_index(tiny: Callable[..., Config], storage: str) -> None:
    config = tiny(f"encoders.{ENCODER}.storage={storage}")
    repa_cache.build(config)
    cache = repa_cache.open(config.cache.path)
    tokens, latents = cache[ENCODER].tokens, cache.latents
    assert len(tokens) == len(latents) == 21
    for rows in (tokens, latents):
        every = rows[:]
        assert every.shape == rows.shape
        assert every.dtype == np.float32
        assert np.isfinite(every).all()
        mask = np.arange(21) % 2 == 0
        for index in ([3, 1], slice(2, 9, 3), 4, -1, np.array([-2, 5, 5]), mask, [], np.int64(7)):
            expected = every[index]
            assert np.array_equal(rows[index], expected), index
            assert rows[index].shape == expected.shape
        for outside in (21, -22, [0, 21]):
            with pytest.raises(IndexError):
                rows[outside]
    assert not np.array_equal(tokens[0], tokens[1])
    assert cache[ENCODER].valid.all()
    assert len(list(iter(tokens))) == 21


def test_what_is_not_there_is_an_error_of_its_own(cache: repa_cache.Cache, tmp_path: Path) -> None:
    with pytest.raises(repa_cache.Error, match="There is no cache at"):
        repa_cache.open(tmp_path / "none.zarr")
    with pytest.raises(repa_cache.Error, match="no column features/dino"):
        cache["dino"]
    with pytest.raises(repa_cache.Error, match="no column features/dino"):
        cache.batches(4, ["dino"])
    with pytest.raises(repa_cache.Error, match="no column features/dino"):
        cache.dataset(["dino"])
    with pytest.raises(repa_cache.Error, match="no class token"):
        cache[ENCODER].class_tokens  # noqa: B018 - it raises
    for read in (cache.batches, lambda _, **kept: cache.dataset(**kept)):
        with pytest.raises(repa_cache.Error, match="no class token"):
            read(4, class_tokens=[ENCODER])
    with pytest.raises(repa_cache.Error, match=r"no column .*flipped"):
        cache.batches(4, flip=True)
    with pytest.raises(repa_cache.Error, match="no device"):
        cache.batches(4, device="abacus")
    with pytest.raises(ValueError, match="no batch for rank 0 of 3"):
        cache.batches(4, world=3)
    with pytest.raises(AttributeError, match="no attribute 'buld'"):
        repa_cache.buld  # type: ignore[attr-defined]  # noqa: B018 - it raises


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_of_training(tiny: Callable[..., Config], flip: bool) -> None:
    config = tiny(f"dataset.flip={str(flip).lower()}", "train.seed=7")
    repa_cache.build(config)
    cache, place = repa_cache.open(config.cache.path), Placement(torch.device("cpu"))
    stream = cache.batches(4, [ENCODER], seed=7, start=2, steps=7, flip=flip)
    with closing(cached_batches(config)) as trained:
        randomness = Randomness(config.train, (4, 8, 8), place, {})
        for step, batch in zip(range(2, 9), stream, strict=True):
            read, images = trained.read(step), trained.images(step)
            mean, std = read["moments"].float().chunk(2, dim=1)
            assert batch.step == step
            assert torch.equal(batch.moments, read["moments"].float())
            assert torch.equal(batch.labels, read["labels"])
            assert batch.keys == cache.keys[images].tolist()
            drawn = (mean + std * randomness.at(step)["posterior"]) * 0.5
            torch.testing.assert_close(batch.latents, drawn)
            tokens = batch.tokens[ENCODER]
            cosine = torch.nn.functional.cosine_similarity(
                tokens, read[f"{ENCODER}/directions"], dim=-1
            )
            torch.testing.assert_close(cosine, torch.ones_like(cosine))
            if not flip:
                assert np.array_equal(tokens.numpy(), cache[ENCODER].tokens[images])


def test_ranks_share_a_batch_and_a_stream_goes_on_anywhere(cache: repa_cache.Cache) -> None:
    whole = list(cache.batches(6, [ENCODER], steps=5))
    shares = [list(cache.batches(6, [ENCODER], steps=5, rank=rank, world=2)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch.keys == [key for part in parts for key in part.keys]
        for name in ("moments", "latents", "labels"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(getattr(batch, name), joined)
    for batch, again in zip(whole[3:], cache.batches(6, [ENCODER], start=3, steps=2), strict=True):
        assert_same(batch, again)


def test_a_batch_stays_as_it_was_while_others_are_read(cache: repa_cache.Cache) -> None:
    kept = list(cache.batches(4, [ENCODER], steps=8, ahead=1))
    for step, batch in enumerate(kept):
        (alone,) = cache.batches(4, [ENCODER], start=step, steps=1)
        assert_same(batch, alone)


def test_batches_have_no_end_and_their_threads_do(cache: repa_cache.Cache) -> None:
    before = set(threading.enumerate())

    def started() -> Iterator[threading.Thread]:
        return (thread for thread in threading.enumerate() if thread not in before)

    stream = cache.batches(4, [ENCODER])
    for _ in range(20):
        next(stream)
    assert list(started())
    stream.close()  # type: ignore[attr-defined]
    for thread in started():
        thread.join(10)
    assert not list(started())
    stream = cache.batches(4, [ENCODER])
    next(stream)
    del stream
    gc.collect()
    for thread in started():
        thread.join(10)
    assert not list(started())


def test_a_data_set_has_the_images_of_the_cache(cache: repa_cache.Cache) -> None:
    images = cache.dataset([ENCODER])
    assert isinstance(images, Dataset)
    assert len(images) == 21
    item = images[5]
    assert item["key"] == cache.keys[5]
    assert item["label"] == cache.labels[5]
    assert np.array_equal(item["moments"].numpy(), cache.latents[5])
    assert np.array_equal(item["tokens"][ENCODER].numpy(), cache[ENCODER].tokens[5])
    with pytest.raises(IndexError):
        images[21]
    assert_same(pickle.loads(pickle.dumps(images))[5], item)


@pytest.mark.parametrize("start", few_fast(["fork", "spawn"]))
def test_workers_of_a_loader_read_the_same(cache: repa_cache.Cache, start: str) -> None:
    images = cache.dataset([ENCODER])
    expected = list(DataLoader(images, 4))
    loader = DataLoader(images, 4, num_workers=2, multiprocessing_context=start)
    for one, other in zip(loader, expected, strict=True):
        assert_same(one, other)


def test_commands_raise_what_the_program_says(tiny: Callable[..., Config]) -> None:
    tiny()
    assert repa_cache.plan(repa_cache.load_config(), images=9).images.count == 9
    config = repa_cache.load_config("pipeline.toml", ["train.steps=2"], command="train")
    with pytest.raises(repa_cache.Error, match="There is no cache at"):
        repa_cache.train(config)
    with pytest.raises(repa_cache.Error, match="did you mean 'steps'"):
        repa_cache.load_config("pipeline.toml", ["train.step=2"])
    with pytest.raises(repa_cache.Error, match="there is no folder nowhere"):
        repa_cache.load_config(overrides=["dataset.path=nowhere"], command="build")
    assert repa_cache.build(config).rows == 21
    assert repa_cache.verify(config) == []
    assert repa_cache.train(config).step == 2


@pytest.fixture
def hostile(tmp_path: Path, tiny_vae: Path) -> Path:
    """A working folder with files of our packages' names, that nobody may import."""
    folder = tmp_path / "hostile"
    write_images(folder / "images")
    (folder / "pipeline.toml").write_text(TINY.format(vae=tiny_vae))
    for name in NAMES:
        (folder / f"{name}.py").write_text("raise SystemExit('hijacked: ' + __file__)\n")
    return folder


COMMANDS = (
    *("plan --images 9", "config", "build --workers 1", "inspect tiny.zarr", "verify tiny.zarr"),
    "copy tiny.zarr copy.zarr",
    *("bench tiny.zarr", "train", "sample run", "evaluate run", "report run", "export run x.pt"),
    "analyze encoders tiny.zarr",
)


@pytest.mark.slow
def test_every_command_works_beside_files_of_the_packages_names(hostile: Path) -> None:
    (hostile.parent / "repa-cache").write_text(PROGRAM)
    # Even where the working folder comes first among those that are searched.
    path = os.pathsep.join([str(hostile), str(ROOT)])
    for command in COMMANDS:
        run_python(hostile.parent / "repa-cache", *command.split(), cwd=hostile, path=path)


@pytest.mark.slow
def test_so_does_a_build_with_workers(hostile: Path) -> None:
    (hostile.parent / "repa-cache").write_text(PROGRAM)
    path = os.pathsep.join([str(hostile), str(ROOT)])
    program = hostile.parent / "repa-cache"
    assert "21 rows" in run_python(program, "build", "--workers", "1", cwd=hostile, path=path)


SCRIPT = """
import sys
import repa_cache
from torch.utils.data import DataLoader

if __name__ == "__main__":
    cache = repa_cache.open(sys.argv[1])
    (batch,) = cache.batches(4, cache.encoders, steps=1)
    images = cache.dataset(cache.encoders)
    loader = DataLoader(images, 4, num_workers=1, multiprocessing_context="spawn")
    print(sum(len(one["key"]) for one in loader), tuple(batch.latents.shape))
"""


@pytest.mark.slow
def test_a_script_beside_them_reads_a_cache_in_spawned_workers_too(
    hostile: Path, built: Path
) -> None:
    (hostile / "script.py").write_text(SCRIPT)
    output = run_python(hostile / "script.py", built / "tiny.zarr", cwd=hostile)
    assert output == "21 (4, 4, 8, 8)\n"


def test_another_package_of_such_a_name_is_named(hostile: Path) -> None:
    (hostile / "cache.py").write_text("")
    program = "import cache\ntry:\n    import repa_cache\nexcept ImportError as e:\n    print(e)\n"
    output = run_python("-c", program, cwd=hostile)
    assert "cache.py was imported as 'cache'" in output
    assert "Give it another name." in output


# In its folder: the installed program, and what a type checker finds.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plain_installation_has_it_with_its_types(
    hostile: Path, built: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(ROOT)], check=True, cwd=tmp_path)
    (hostile / "script.py").write_text(SCRIPT)
    path, cwd = str(site), tmp_path / "empty"
    cwd.mkdir()
    where = run_python("-c", "import repa_cache; print(repa_cache.ROOT)", cwd=cwd, path=path)
    assert where.strip() == str(site)
    assert (site / "repa_cache/py.typed").is_file()
    output = run_python(hostile / "script.py", built / "tiny.zarr", cwd=hostile, path=path)
    assert output == "21 (4, 4, 8, 8)\n"
    output = run_python(site / "bin/repa-cache", "verify", built / "tiny.zarr", cwd=cwd, path=path)
    assert "every byte is what was written" in output


def example() -> str:
    """The program in the README's section for scripts."""
    section = (ROOT / "README.md").read_text().partition("## In a training script of your own")[2]
    match = re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match.group(1)


def test_the_example_of_the_readme_works(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)
    program = example()
    assert len(program.splitlines()) <= 10
    for theirs, ours in (
        ("imagenet256.zarr", "tiny.zarr"),
        ("dinov2-vit-b", ENCODER),
        ('"cuda"', '"cpu"'),
        ("batches(256", "batches(4"),
    ):
        assert theirs in program
        program = program.replace(theirs, ours)
    seen = []

    def loss_fn(_model: object, x: torch.Tensor, labels: dict[str, Any], zs: list[Any]) -> None:
        seen.append((tuple(x.shape), labels["y"].tolist(), [z.shape[0] for z in zs]))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exec(program, {"loss_fn": loss_fn, "model": None})
    assert [(shape, rows) for shape, _, rows in seen] == [((4, 4, 8, 8), [4])] * 3
