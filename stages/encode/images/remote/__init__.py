"""Files of data sets that are read over the network, in ranges and never as a whole."""
