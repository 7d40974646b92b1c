"""What a pipeline.toml will cost and gain, before anything runs.

space          bytes and files of the cache, against the room on its disk
durations      how long a build takes, and how fast training will want to read
scratch_cache  a cache of random rows, to measure this disk with
gains          when the cache is cheaper than running the encoders in every step
outline        all of it for one configuration
advice         what follows from it, in sentences
quantities     numbers as people read them
plan_tables    the plan for a terminal
plan_json      the plan for programs
"""
