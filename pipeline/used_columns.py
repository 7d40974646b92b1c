"""The columns of a cache that a run reads."""

from cache.metadata import check_fields, has_column, read_column, root_attributes
from cache.rows import count_rows
from pipeline.config import Config
from stages.encode.building.columns import declared_recipes


def used_columns(config: Config) -> list[str]:
    """The names of those that the configured run reads."""
    return [name for views in config.tensors.columns(config.train.encoders) for name in views]


def check_columns(config: Config) -> None:
    """Raise StaleCacheError if one of them is not what this configuration would build.

    Weights are compared by `build`, which loads the networks.
    """
    path = config.cache.path
    root_attributes(path)
    rows = count_rows(path)
    declared = declared_recipes(config.encode)
    for name in used_columns(config):
        if has_column(path, name):
            check_fields(read_column(path, name, rows), declared[name])
