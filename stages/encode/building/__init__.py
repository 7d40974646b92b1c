"""From crops to the finished columns of a cache."""
