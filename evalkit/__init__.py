"""evalkit: evaluate vision-language models with numbers you can defend."""

__version__ = "0.1.0"
