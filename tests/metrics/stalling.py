"""A worker's service that can be told to stall, to fail and to die: for the tests of the worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


class Stalling:
    """Answers a list of items; an item may ask for trouble."""

    def __init__(self, broken: bool = False) -> None:
        if broken:
            raise ValueError("broken from the start")

    def answer(self, request: Any) -> list[Any]:
        return [self._one(item) for item in request]

    def _one(self, item: Any) -> Any:
        if item == "stall":
            time.sleep(600)
        if item == "stall in Java":
            import jpype

            jpype.JClass("java.lang.Thread").sleep(600_000)
        if item == "raise":
            import jpype

            jpype.JClass("java.lang.Integer").parseInt("no number")
        if item == "die":
            print("these were my last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "print":
            import jpype

            jpype.JClass("java.lang.System").out.println("printed by Java")
        if item == "noise":
            sys.stderr.write("noise\n" * 200_000)
        return item
