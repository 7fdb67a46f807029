"""Randomized smoothing: what a smoothed classifier answers, and in which ball it cannot change."""
