"""`engine=ray`: units on the actors of a cluster, a lost node costs its share alone.

pip install 'evalkit[ray]' && python -m pytest tests/test_ray_engine.py
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import CHOICE, PATIENCE, Ran, answers, caption_files, only_run, run_evalkit, start, until, vqa_files

LINE = (
    "engine=ray", "model=custom", "model._target_=tests.odd_models.Odd", "model.name=odd",
    "engine.image_batch=2", "engine.prompt_batch=3", "data=files", "data.root=files", "data.check=false",
)  # fmt: skip


def test_without_ray_the_way_out_is_said(
    tmp_path: Path, command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    vqa_files(tmp_path / "files")
    real = builtins.__import__

    def no_ray(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    ran = command(*LINE, "task=vqav2")
    assert ran.code == 2
    assert "pip install 'evalkit[ray]'" in ran.paragraph


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes on this machine, with room for one actor and for two."""
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'evalkit[ray]'")
    from ray.cluster_utils import Cluster

    small = 100 * 1024 * 1024
    nodes, said = None, ""
    for _ in range(3):  # Ray gives its own services 30 s, which a busy machine may not keep
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, object_store_memory=small, include_dashboard=False)
            nodes.add_node(num_cpus=2, object_store_memory=small)
            break
        except Exception as error:  # noqa: BLE001  Ray raises a bare Exception here
            said = str(error)
            nodes.shutdown()
            nodes = None
    if nodes is None:
        pytest.skip(f"Ray could not start a cluster here in three attempts: {said}")
    try:
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_a_node_lost_in_the_middle_costs_only_its_share(tmp_path: Path, cluster: Any) -> None:
    caption_files(vqa_files(tmp_path / "files", images=40, questions=4), images=40)
    (tmp_path / "quiet").mkdir()
    (tmp_path / "quiet" / "files").symlink_to(tmp_path / "files")
    for task in ("vqav2", "retrieval", CHOICE):
        quiet = run_evalkit(*LINE, "engine=local", f"task={task}", "devices=1", cwd=tmp_path / "quiet")
        assert quiet.code == 0, quiet.err
    where = {"RAY_ADDRESS": cluster.address}

    for task, family in (("retrieval", "retrieval"), (CHOICE, "choice")):
        even = run_evalkit(*LINE, f"task={task}", cwd=tmp_path, timeout=PATIENCE, **where)
        assert even.code == 0, even.err
        _equal(tmp_path, family)

    traces = tmp_path / "traces"
    process = start(*LINE, "task=vqav2", f"model.folder={traces}", "model.batch_s=0.3", cwd=tmp_path, **where)
    try:
        logs = "results/runs/vqav2/*/*/predictions/*.jsonl"
        until(lambda: sum(path.stat().st_size > 0 for path in tmp_path.glob(logs)) >= 3)  # all three work
        before = {path.stem for path in traces.glob("*.pid")}
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, (out, err)
    assert len(before) == 3
    assert err.count("is lost") == 2, err
    assert "units are handed out again" in err
    assert len(list(tmp_path.glob(logs))) == 3  # nobody could be started in their place
    _equal(tmp_path, "vqav2")


def _equal(folder: Path, task: str) -> None:
    run, quiet = only_run(folder, task), only_run(folder / "quiet", task)
    assert answers(run) == answers(quiet)
    assert (run / "scores.json").read_bytes() == (quiet / "scores.json").read_bytes()


@pytest.mark.slow
def test_errors_of_actors_end_the_run_as_their_own(tmp_path: Path, cluster: Any) -> None:
    vqa_files(tmp_path / "files", images=10, questions=4)
    where = {"RAY_ADDRESS": cluster.address}
    gone = run_evalkit(
        *LINE, "task=vqav2", "model.gone_on=1002", "model.once=false", cwd=tmp_path, timeout=PATIENCE, **where
    )
    assert gone.code == 2
    assert "the odd model is gone; start it again" in gone.paragraph
    bug = run_evalkit(*LINE, "task=vqav2", "model.bug_on=prepare", cwd=tmp_path, timeout=PATIENCE, **where)
    assert bug.code == 1
    assert "ZeroDivisionError: a bug in prepare" in bug.err
