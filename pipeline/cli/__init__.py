"""The commands: parse, validate, hand over."""

import typer

from pipeline.cli.analyzing import analyze
from pipeline.cli.caching import bench, build, verify
from pipeline.cli.drawing import evaluate, export, sample
from pipeline.cli.inspecting import KeysAfterRows, inspect
from pipeline.cli.plain import run, train
from pipeline.cli.planning import plan
from pipeline.cli.presets import init
from pipeline.cli.reporting import report

app = typer.Typer(
    help="Build once, train many: cached latents and encoder features for REPA training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which they are needed, which is that of the help.
for command in (
    *(init, plan, build, inspect, verify, bench),
    *(train, sample, evaluate, run, report, export),
):
    app.command(cls=KeysAfterRows if command is inspect else None)(command)
app.add_typer(analyze)
