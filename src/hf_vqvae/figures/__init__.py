"""Arrays to PNG; the only room that imports matplotlib."""
