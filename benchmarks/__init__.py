"""What is claimed about speed, measured: `python -m benchmarks [name ...]`. Ratios within one run; the machine may be noisy."""
