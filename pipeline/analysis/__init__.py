"""Analyses as tables, CSV files, pictures and pages."""
