"""Recipes that trained the weights shipped with the package."""
