"""Copies of caches, between disks and stores."""
