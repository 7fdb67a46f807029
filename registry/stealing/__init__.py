"""Stealing attacks, one file each."""
