"""What every setting means, for editors, for documents and beside the values in use."""
