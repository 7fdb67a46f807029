"""querybench: query-based black-box attacks against defenses, at matched clean accuracy."""

__version__ = "0.1.0"
