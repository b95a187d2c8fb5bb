"""A shim: the task files are in the top-level folder `tasks/`, and import as `evalkit.tasks.<name>`."""

from evalkit.paths import bundled

__path__ = [str(bundled("tasks"))]
