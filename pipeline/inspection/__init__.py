"""What `repa-cache inspect` tells and shows of a cache."""
