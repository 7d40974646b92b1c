"""What a pipeline.toml will cost and gain, before anything runs.

space       bytes and files of the cache, against the room on its disk
speeds      how long a build takes, and how fast training will want to read
scratch     a cache of random rows, to measure this disk with
gains       when the cache is cheaper than running the encoders in every step
outline     all of it for one configuration
advice      what follows from it, in sentences
show        tables
export      JSON
"""
