"""Commands as functions: they take a configuration, return what came of it and raise errors."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cache.errors import RepaCacheError, StaleCacheError
from cache.verify import Remedy
from pipeline import commands
from pipeline.commands import app
from pipeline.commands.bench import bench
from pipeline.commands.build import build
from pipeline.commands.copy import copy
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.init import init
from pipeline.commands.plan import plan
from pipeline.commands.report import report
from pipeline.commands.sample import sample
from pipeline.commands.train import train
from pipeline.commands.verify import verify
from pipeline.config import Config
from stages.weights.export_options import ExportOptions

NAMES = [str(command.name) for command in app.registered_commands]
MODULES: dict[str, ModuleType] = {name: getattr(commands, name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_and_its_function_stand_in_the_file_of_its_name(name: str) -> None:
    function = getattr(MODULES[name], name)
    assert inspect.getmodule(function) is MODULES[name]
    assert "typer" not in str(inspect.signature(function))
    parameters = list(inspect.signature(function).parameters)
    others = {
        "init": "preset",
        "config": "path",
        "export": "run",
        "report": "runs",
        "copy": "source",
    }
    expected = {**others, "sweep": "path"}.get(name, "config")
    assert parameters[0] == expected


def test_functions_do_the_work_and_print_nothing(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("train.steps=2", "sample.images=4", "evaluate.metrics=[]", "sample.steps=2")
    assert plan(config).images.count == 21
    assert build(config).rows == 21
    assert verify(config) == []
    assert commands.inspect.inspect(config).rows is not None
    assert train(config).step == 2
    assert sample(config).images == 4
    ((path, results),) = evaluate(config)
    assert path == config.train.run / "samples" / "step-00000002"
    assert any("efficientnet-lite0" in result.metric for result in results)
    assert export(config.train.run, ExportOptions(tmp_path / "x.pt")).step == 2
    (*_, features) = copy(config.cache.path, tmp_path / "copy.zarr")
    assert (features.name, features.copied) == ("features/efficientnet-lite0", 3)
    assert report([config.train.run]) == (config.train.run / "report.html", 1)
    assert init("demo", tmp_path / "other.toml") == []
    assert capsys.readouterr().out == ""


def test_functions_raise_what_a_command_would_say(tiny: Callable[..., Config]) -> None:
    config = tiny()
    with pytest.raises(RepaCacheError, match="There is no cache at"):
        train(config)
    build(config)
    changed = tiny("encoders.efficientnet-lite0.storage=int8")
    for use in (train, bench):
        with pytest.raises(StaleCacheError) as caught:
            use(changed)
        assert caught.value.where == str(config.cache.path / "features/efficientnet-lite0")
        assert "build --rebuild efficientnet-lite0" in caught.value.remedy
    (config.cache.path / "features/efficientnet-lite0/tokens/c.1.0.0").unlink()
    (fault,) = verify(config)
    assert fault.remedy is Remedy.REPAIR
