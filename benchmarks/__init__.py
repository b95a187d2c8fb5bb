"""What is claimed about speed, measured: `python -m benchmarks [name ...]`. Ratios, taken within one run."""
