"""What a task asks of a model, compared with what the model declares: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from ..errors import SampleError
from ..types import Capability, Decoding, Kind, Prompt, Task

_NEEDS: dict[Kind, Capability] = {
    "generate": "generate",
    "choose": "loglikelihood",
    "ground": "ground",
    "retrieve": "itc",
}

_WITHOUT: dict[Capability, str] = {
    "generate": "it does not generate text",
    "loglikelihood": "it gives no likelihood of an option",
    "ground": "it has no box syntax",
    "itc": "it has no embeddings of images and texts to compare",
    "rank": "it cannot rank a list of answers (decoding.rank_candidates=0 generates instead)",
}


def shortfall(capabilities: Collection[Capability], task: Task) -> str | None:
    """Return why a model with these capabilities cannot do the task, or None.

    Args:
        capabilities: What the model declares.
        task: The task as it will be run, its decoding settled.
    """
    need = "itc" if task.matches else _NEEDS[task.kind]
    if need not in capabilities:
        can = ", ".join(sorted(capabilities)) or "nothing"
        return f"{task.name} needs {need!r}: {_WITHOUT[need]} (it can: {can})"
    if task.kind in ("generate", "ground") and task.decoding.rank_candidates > 0 and "rank" not in capabilities:
        return f"{task.name} asks for {task.decoding.rank_candidates} ranked candidates: {_WITHOUT['rank']}"
    if task.kind == "choose":
        default = asdict(Decoding())
        said = [f"decoding.{name}={value}" for name, value in asdict(task.decoding).items() if value != default[name]]
        if said:
            return f"{task.name} chooses among options, and {', '.join(said)} has nothing to act on; leave it unset"
    return None


def sampling_with_beams(decoding: Decoding) -> str | None:
    """Return why sampling and beams exclude each other, or None.

    Noise is drawn per row from (seed, sample id); beam sampling draws it per beam, in an order that depends on the
    batch.
    """
    if decoding.temperature > 0 and decoding.num_beams > 1:
        return (
            f"decoding.temperature={decoding.temperature} samples and decoding.num_beams={decoding.num_beams} "
            "searches; set decoding.num_beams=1 or decoding.temperature=0"
        )
    return None


def single_row(prompt: Prompt) -> int:
    """Return the one image row of a prompt.

    Raises:
        SampleError: The prompt refers to no image, or to several.
    """
    if len(prompt.rows) != 1:
        raise SampleError(
            f"sample {prompt.sample_id} refers to {len(prompt.rows)} images, and this model reads exactly one a prompt"
        )
    return prompt.rows[0]
