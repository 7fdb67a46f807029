"""Moves that several attacks share: windows, estimates, bases."""
