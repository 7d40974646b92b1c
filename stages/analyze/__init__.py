"""What is in a cache and in a model's hidden states: neighbours, structure, probes."""
