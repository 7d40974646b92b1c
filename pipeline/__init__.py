"""What people touch: configuration, commands, reports."""

import stages  # noqa: F401 - sets what has to be set before anything uses a GPU
