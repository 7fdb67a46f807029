"""The built-in entries of querybench."""
