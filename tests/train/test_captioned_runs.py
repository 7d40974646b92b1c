"""Training from cached captions, and drawing of prompts, with a tiny text encoder."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import assert_close_runs, launch
from marking import few_fast
from PIL import Image
from runs import (
    CPU,
    assert_equal_runs,
    assert_falls,
    cached_batches,
    image_bytes,
    log_values,
    newest,
    trained,
    trained_in_parts,
)
from texts import TEXTS, WITH_TEXT, captions_of, save_text_model, write_beside
from tiny import TINY, write_images

import repa_cache
from cache.captions import Captions
from cache.errors import RowsChangedError
from cache.reader import Cache
from pipeline.config import Config, ConfigError, load_config
from stages.analyze.analysis_options import StateOptions
from stages.analyze.caption_vectors import CaptionVectors
from stages.analyze.losses import measure_losses
from stages.analyze.neighbours import find_nearest
from stages.analyze.subject import open_subject
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.encode.networks.text_encoder import TextEncoder
from stages.model.transformer import positions
from stages.placement import Placement
from stages.sample.generate import Drawn, GridDrawer, sample
from stages.sample.prompts import TextSource
from stages.sample.sampled_weights import SampleOptions
from stages.sample.solvers.solver import SampleError
from stages.train.cached_captions import CONTEXT, SEEN, CachedCaptions
from stages.train.loop import train
from stages.train.train_settings import RunError
from stages.weights.export import export
from stages.weights.export_options import ExportOptions, Layout
from stages.weights.published import WeightsError

KINDS = ("clip", "bert")


@pytest.fixture(scope="module", params=few_fast(KINDS))
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path
) -> Path:
    """A finished cache of captioned images: padding is seen by one encoder, masked by the other."""
    folder = tmp_path_factory.mktemp(request.param)
    write_images(folder / "images")
    write_beside(folder / "images")
    # One image has no caption.
    (folder / "images" / "class1" / "3.txt").unlink()
    text = save_text_model(folder / "text", request.param)
    document = TINY.format(vae=tiny_vae) + TEXTS.format(folder=text) + "max_tokens = 12\n"
    (folder / "pipeline.toml").write_text(document)
    build(load_config(folder / "pipeline.toml").encode, CPU.device)
    return folder


@pytest.fixture
def configured(folder: Path, tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: load_config(
        folder / "pipeline.toml", [f"train.run={tmp_path / 'run'}", *WITH_TEXT, *overrides]
    )


def source(config: Config) -> TextSource:
    return TextSource(config.texts, config.cache.path)


def drawn(config: Config, *prompts: str, **options: Any) -> Drawn:
    chosen = SampleOptions(prompts=prompts, **options)
    return sample(config.sample, chosen, config.train, config.decoder, CPU, source(config))


def online(config: Config, texts: list[str]) -> torch.Tensor:
    """What the text encoder gives for texts, as the cache keeps it."""
    encoder = TextEncoder("tiny", config.texts["tiny"], CPU.device)
    return encoder.features(encoder.tokenised(texts))["tokens"].half().float()


def test_a_run_learns_resumes_bit_for_bit_and_names_what_it_read(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trained_in_parts(configured, tmp_path)
    state = newest(whole).state
    assert "captions/features/tiny" in state["columns"]
    assert len(state["rows"]["captions"]) == 64
    assert state["text"]["encoder"] == "tiny"
    longer = configured("train.steps=60", "train.learning_rate=3e-3", f"train.run={tmp_path / 'l'}")
    trained(longer)
    assert_falls(longer, "denoising")


def test_everything_from_captions_to_numbers_is_summed_up(
    configured: Callable[..., Config],
) -> None:
    config = configured()
    lines = repa_cache.run(config).lines()
    texts = len(Captions(config.cache.path, Cache(config.cache.path).rows).texts)
    assert lines["  captions/features/tiny"] == f"{texts * 12 * 32 * 2 / 1e6:,.1f} MB"
    assert "fd_efficientnet-lite0" in lines


def test_each_image_is_told_of_by_a_caption_of_its_own_and_another_at_another_step(
    configured: Callable[..., Config],
) -> None:
    config = configured("train.steps=40", "train.batch_size=4")
    cache = Cache(config.cache.path)
    captions = Captions(config.cache.path, cache.rows)
    seen: dict[str, set[str]] = {}
    with closing(cached_batches(config)) as batches:
        for step in range(40):
            rows, texts = batches.images(step), batches.texts(step)
            for row, text in zip(rows.tolist(), texts.tolist(), strict=True):
                said = str(captions.texts[text])
                assert said in captions.of(row)
                seen.setdefault(str(cache.rows.key[row]), set()).add(said)
        assert batches.texts(3).tolist() == batches.texts(3).tolist()
    assert len(seen) == 20
    assert "class1/3.jpg" not in seen
    several = {key for key, said in seen.items() if len(said) > 1}
    assert len(several) > 8


def test_a_batch_has_what_the_encoder_would_give_online(configured: Callable[..., Config]) -> None:
    config = configured()
    texts = Captions(config.cache.path, Cache(config.cache.path).rows).texts
    with closing(cached_batches(config)) as batches:
        batch = batches.read(1)
        said = texts[batches.texts(1)].tolist()
    torch.testing.assert_close(batch[CONTEXT], online(config, said), rtol=1e-3, atol=2e-3)
    if SEEN in batch:
        lengths = [len(text.split()) + 2 for text in said]
        assert batch[SEEN].sum(dim=1).tolist() == lengths


def test_training_with_text_online_equals_training_from_the_cache(
    configured: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured()
    trained(config)
    texts = Captions(config.cache.path, Cache(config.cache.path).rows).texts
    other = configured(f"train.run={tmp_path / 'online'}")
    encoder = TextEncoder("tiny", config.texts["tiny"], CPU.device)
    with closing(cached_batches(other)) as batches:
        chosen = [batches.texts(step) for step in range(other.train.steps)]
    real = CachedCaptions.decoder

    def decoder(captions: CachedCaptions, device: torch.device) -> Any:
        decode, steps = real(captions, device), iter(range(100))

        def encoded(arrays: Any) -> Any:
            said = texts[chosen[next(steps)]].tolist()
            found = encoder.features(encoder.tokenised(said))["tokens"].half().float()
            return {**decode(arrays), CONTEXT: found}

        return encoded

    with monkeypatch.context() as patched:
        patched.setattr(CachedCaptions, "decoder", decoder)
        trained(other)
    for line, expected in zip(log_values(other), log_values(config), strict=True):
        assert line == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    path = folder / "pipeline.toml"
    cache = f"cache.path={folder / 'tiny.zarr'}"
    alone = [f"train.run={tmp_path / 'alone'}", cache, *WITH_TEXT]
    trained(load_config(path, alone))
    two = {
        name: [f"train.run={tmp_path / name}", cache, *WITH_TEXT, f"train.compute.parallel={name}"]
        for name in ("ddp", "fsdp")
    }
    launch(folder, list(two.values()))
    for overrides in two.values():
        assert_close_runs(load_config(path, overrides), load_config(path, alone), 1e-4)


def test_a_cache_whose_captions_changed_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    config = load_config(own / "pipeline.toml", [f"train.run={tmp_path / 'run'}", *WITH_TEXT])
    trained(config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})}))
    (own / "images" / "class0" / "4.txt").write_text("another caption\n")
    with pytest.raises(RowsChangedError, match="other captions than before"):
        build(config.encode, CPU.device)
    build(config.encode, CPU.device, BuildOptions(update=True))
    with pytest.raises(RunError, match="made with other rows"):
        trained(config)


def test_prompts_are_drawn_by_the_run_s_own_text_encoder(
    configured: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    config = configured()
    trained(config)
    found = drawn(config.drawing(("a red cup", "a hot drink"), 2), "a red cup", "a hot drink")
    assert found.samples.captions() == ["a red cup", "a hot drink"] * 2
    assert found.samples.images == 4
    manifest = json.loads((found.samples.folder / "manifest.json").read_text())
    assert manifest["prompts"] == ["a red cup", "a hot drink"]
    with Image.open(found.samples.grid) as picture:
        # Two columns, and room for words below.
        assert picture.width == 2 * 160
        assert picture.height > 2 * 160 + 2 * 12
    again = drawn(config.drawing(("a red cup", "a hot drink"), 2), "a red cup", "a hot drink")
    assert again.images == 0
    other = drawn(config.drawing(("a red cup",), 2), "a red cup")
    assert other.samples.folder != found.samples.folder
    assert image_bytes(other.samples)[0] == image_bytes(found.samples)[0]
    foreign = save_text_model(
        tmp_path / "foreign", folder.name.rstrip("0123456789"), hidden_size=16
    )
    changed = configured(f"texts.tiny.model={foreign}")
    with pytest.raises(SampleError, match=r"texts\.tiny\] is not the encoder .*weights_sha256"):
        drawn(changed, "a red cup")
    without = config.model_copy(update={"texts": {}})
    with pytest.raises(SampleError, match="reads captions by 'tiny', of which"):
        drawn(without, "a red cup")


def test_without_prompts_the_captions_of_the_cache_are_drawn(
    configured: Callable[..., Config],
) -> None:
    config = configured("sample.guidance=1.7")
    trained(config)
    found = drawn(config)
    captions = found.samples.captions()
    assert captions is not None
    assert len(captions) == config.sample.images
    cached = Captions(config.cache.path, Cache(config.cache.path).rows)
    assert set(captions) <= set(cached.texts.tolist())
    prompted = drawn(config.drawing(tuple(captions), 1), *captions)
    assert_alike(found, prompted)
    decoder, place = config.decoder, CPU.device
    drawer = GridDrawer(config.sample, config.train, decoder, place, source(config))
    drawer(4, newest(config).weights("ema"), newest(config).model)
    assert (config.train.run / "grids" / "step-00000004.png").is_file()


def assert_alike(one: Drawn, other: Drawn) -> None:
    """That images are the same, but for rounding."""
    for index in range(one.samples.images):
        pixels = [
            np.asarray(Image.open(own.samples.path(index))).astype(int) for own in (one, other)
        ]
        assert abs(pixels[0] - pixels[1]).max() <= 2


def test_guidance_moves_away_from_the_empty_caption(configured: Callable[..., Config]) -> None:
    learnt = ("train.steps=30", "train.learning_rate=1e-2", "train.ema_decay=0.1")
    config, strong = configured(*learnt), configured(*learnt, "sample.guidance=4")
    trained(config)
    plain = drawn(config, "a red cup", folder=config.train.run / "plain")
    guided = drawn(strong, "a red cup", folder=config.train.run / "guided")
    assert image_bytes(plain.samples) != image_bytes(guided.samples)
    # Of the empty caption there is nothing to move away from.
    empty = drawn(config, "", folder=config.train.run / "empty")
    assert_alike(empty, drawn(strong, "", folder=config.train.run / "nothing"))


def test_a_run_of_classes_takes_no_prompts(built: Path, tmp_path: Path) -> None:
    config = load_config(built / "pipeline.toml", [f"train.run={tmp_path / 'run'}"])
    trained(config)
    with pytest.raises(SampleError, match="SiT-XS/2 reads no captions"):
        drawn(config, "a red cup")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.model=MMDiT-XS/2"], "train.text: MMDiT-XS/2 reads captions; name a section"),
        (["train.text=tiny"], "train.text: SiT-XS/2 reads no captions"),
        (["train.model=MMDiT-XS/2", "train.text=tyny"], "is not there; did you mean 'tiny'"),
        ([*WITH_TEXT, "train.rotary=true"], "train.rotary: MMDiT-XS/2 has no such layers"),
        ([*WITH_TEXT, "texts.other.layer=-2"], "other: model: required"),
        ([*WITH_TEXT, "texts.tiny.layer=0"], "texts.tiny.layer"),
    ],
)
def test_what_does_not_fit_together_is_named(
    folder: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        load_config(folder / "pipeline.toml", overrides)


@pytest.mark.slow
def test_methods_of_images_hold_for_captions_too(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    entries = {
        "irepa": "train.align.0.kind=irepa",
        "dispersive": 'train.align=[{kind="dispersive"}]',
        "sra": 'train.align=[{kind="sra", depth=1, teacher_depth=3}]',
        "class-token": (
            'train.align=[{kind="class-token", encoder="efficientnet-lite0"}, '
            '{kind="repa", encoder="efficientnet-lite0", depth=2, projector_width=32, '
            "class_token=true}]"
        ),
        "layers": "train.norm=rms-affine",
        "swiglu": "train.mlp=swiglu",
        "micro": "train.compute.micro_batches=2",
        "recomputed": "train.compute.recompute_activations=true",
    }
    for name, override in entries.items():
        config = configured(override, f"train.run={tmp_path / name}", "train.steps=2")
        trained(config)
        assert len(log_values(config)) == 2, name
    assert_equal_runs(
        configured(f"train.run={tmp_path / 'recomputed'}"),
        _plain(configured, tmp_path),
    )


def _plain(configured: Callable[..., Config], tmp_path: Path) -> Config:
    config = configured(f"train.run={tmp_path / 'plain'}", "train.steps=2")
    train(config.train, config.tensors, Placement(CPU.device))
    return config


def test_weights_are_read_and_written_under_the_published_names(
    configured: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    config = configured()
    trained(config)
    path = tmp_path / "mmdit.pt"
    made = export(config.train.run, ExportOptions(path))
    assert made.layout is Layout.REPA
    assert made.loaded_by == "REPA's MMDiT with depth=4, context_dim=32 and input_size=8"
    names = torch.load(path, weights_only=True)["ema"].keys()
    assert {"context_embedder.weight", "joint_blocks.3.x_block.mlp.fc2.bias"} <= names
    assert "joint_blocks.3.context_block.attn.proj.weight" not in names
    for layout in (Layout.SIT, Layout.REDI, Layout.LIGHTNINGDIT):
        with pytest.raises(WeightsError):
            export(config.train.run, ExportOptions(tmp_path / "other.pt", layout=layout))
    own = drawn(config, "a red cup", folder=tmp_path / "own")
    official = drawn(config, "a red cup", folder=tmp_path / "official", official=path)
    assert image_bytes(own.samples) == image_bytes(official.samples)
    started = configured(f"train.run={tmp_path / 'started'}", f"train.init_from={path}")
    trained(started)
    classes = [f"train.run={tmp_path / 'classes'}", f"train.init_from={path}"]
    with pytest.raises(WeightsError, match="an MMDiT for captions"):
        trained(load_config(folder / "pipeline.toml", classes))


def test_the_published_table_of_positions_serves_smaller_latents(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured()
    trained(config)
    state = dict(newest(config).weights("ema"))
    table = positions(newest(config).model.width, 16)[None]
    torch.save({"model": {**state, "pos_embed": table}}, tmp_path / "published.pt")
    more = (f"train.init_from={tmp_path / 'published.pt'}", "train.init_weights=model")
    started = configured(f"train.run={tmp_path / 'smaller'}", *more, "train.learning_rate=1e-9")
    trained(started)
    weights = newest(started).weights("model")
    assert torch.equal(weights["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("conditional", [False, True])
def test_hidden_states_and_losses_of_a_run_on_captions_are_analysed(
    configured: Callable[..., Config], conditional: bool
) -> None:
    config = configured()
    trained(config)
    options = StateOptions(cache=config.cache.path, rows=12, is_conditional=conditional)
    subject = open_subject(config.train.run, (), options)
    assert len(subject.rows) == 12
    found = measure_losses(subject, CPU.device)
    assert all(np.isfinite(one.mean) for one in found.levels)


def test_a_loop_of_one_s_own_sees_the_captions_that_training_does(
    configured: Callable[..., Config],
) -> None:
    config = configured("train.steps=3")
    cache = repa_cache.open(config.cache.path)
    place = cache.keys.tolist().index("class2/4.jpg")
    assert cache.captions(place) == captions_of("class2/4.jpg")
    own = cache.batches(4, ["efficientnet-lite0"], text="tiny", seed=0, steps=3)
    with closing(cached_batches(config)) as batches:
        for step, batch in enumerate(own):
            read = batches.read(step)
            assert batch.context is not None
            assert batch.captions is not None
            assert torch.equal(batch.context.tokens, read[CONTEXT])
            for key, said in zip(batch.keys, batch.captions, strict=True):
                assert said in captions_of(key)
    empty = cache.empty_context("tiny")
    torch.testing.assert_close(empty.tokens, online(config, [""]), rtol=1e-3, atol=1e-3)
    plain = next(cache.batches(4, steps=1))
    assert (plain.captions, plain.context) == (None, None)


def test_images_are_found_that_are_told_of_alike(configured: Callable[..., Config]) -> None:
    path = configured().cache.path
    cache = Cache(path)
    captions = Captions(path, cache.rows)
    vectors = CaptionVectors(captions.cache.column("features/tiny"), captions)
    rows = np.flatnonzero(captions.count > 0)
    found = find_nearest(vectors, rows, rows, 2)
    keys = cache.rows.key.tolist()
    for row, near in zip(rows.tolist(), found, strict=True):
        # The same captions are of all images of a number, and of those five further on.
        same = [other for other in rows.tolist() if captions.of(other) == captions.of(row)]
        if len(same) > 2:
            assert near[0].similarity == pytest.approx(1, abs=1e-3), keys[row]
            assert captions.of(near[0].row) == captions.of(row)
    (one,) = vectors.vectors(rows[:1])
    texts = [online(configured(), [text])[0] for text in captions.of(int(rows[0]))]
    lengths = [len(text.split()) + 2 for text in captions.of(int(rows[0]))]
    means = [tokens[:length].mean(dim=0) for tokens, length in zip(texts, lengths, strict=True)]
    np.testing.assert_allclose(one, torch.stack(means).mean(dim=0).numpy(), rtol=1e-2, atol=2e-3)
