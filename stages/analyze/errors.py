"""What can be wrong with a request for an analysis."""

from cache.errors import RepaCacheError


class AnalysisError(RepaCacheError):
    """A run or a cache cannot be analysed in the way that is asked for."""
