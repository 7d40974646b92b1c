"""What runs have come to, read from their folders alone, as one page."""
