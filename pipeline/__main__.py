"""`python -m pipeline` is `repa-cache`; `torchrun -m pipeline train` starts several of them."""

from pipeline.commands import app

app(prog_name="repa-cache")
