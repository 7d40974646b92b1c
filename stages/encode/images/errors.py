"""What is wrong with a data set as a whole."""

from cache.errors import RepaCacheError


class SourceError(RepaCacheError):
    """The data set is not where or what the configuration says."""
