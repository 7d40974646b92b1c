"""What a pipeline.toml will cost and gain, before anything runs."""
