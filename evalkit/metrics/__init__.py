"""Metrics as pure functions: predictions and references in, numbers out. No files, no model, no torch.

Each module follows one official script, named in its docstring; `tests/test_golden.py` holds it to what that script
prints. The functions whose names end in `_metric` wrap the pure ones for a `Task`.
"""
