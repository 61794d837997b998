"""What a saved directory is: its format, writing it, loading it."""
