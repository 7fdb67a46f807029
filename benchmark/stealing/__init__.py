"""Stealing a victim by its answers, and what a stolen copy is good for."""
