"""`python -m pipeline` is `repa-cache`, where no other `pipeline` lies in the working folder."""

from pipeline.commands import app

app(prog_name="repa-cache")
