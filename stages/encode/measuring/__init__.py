"""What a build will take and how true it is, measured or foreseen."""
