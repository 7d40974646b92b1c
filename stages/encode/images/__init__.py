"""From a data set to batches of crops."""
