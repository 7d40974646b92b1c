"""Caches in object stores: places, requests, files, rows, and shards that a local disk keeps."""
