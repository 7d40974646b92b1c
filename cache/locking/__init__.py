"""Who is at work on a cache, and that nobody else is."""
