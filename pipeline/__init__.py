"""What people touch: configuration, commands, reports."""
