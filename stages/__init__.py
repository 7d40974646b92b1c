"""The two stages and what follows: encode, train, sample."""
