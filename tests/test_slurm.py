"""`srun` for real: a Slurm of its own on this machine, two tasks of one step, one of them killed.

apt install slurm-wlm && python -m pytest tests/test_slurm.py      (as root)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import (
    PATIENCE,
    answers,
    environment,
    found,
    odd,
    only_run,
    run_evalkit,
    undisturbed,
    until,
    vqa_files,
)

IMAGES, QUESTIONS = 24, 4
CONFIGURATION = """
ClusterName=evalkit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of one node; what a command must have in its environment to find it."""
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "srun")) or os.geteuid() != 0:
        pytest.skip("needs Slurm (apt install slurm-wlm) and root")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two tasks want two CPUs")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller, node = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, controller=controller, node=node, cpus=os.cpu_count())
    )
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons = [
        subprocess.Popen(
            [name, "-D"], env=environment(**variables), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name in ("slurmctld", "slurmd")
    ]
    try:
        try:
            until(lambda: _sinfo(variables) == "idle", seconds=60)
        except AssertionError:
            logs = "\n".join(path.read_text()[-500:] for path in folder.glob("*.log"))
            pytest.skip(f"Slurm could not start here: {logs}")
        yield variables
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(PATIENCE)


def _sinfo(variables: dict[str, str]) -> str:
    words = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(words, env=environment(**variables), capture_output=True, text=True).stdout.strip()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def srun(*words: str, cwd: Path, slurm: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["srun", "--ntasks=2", sys.executable, "-m", "evalkit", *words], cwd=cwd, env=environment(**slurm), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_tasks_share_the_work_and_one_that_is_killed_leaves_its_share(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    files = vqa_files(tmp_path / "files", images=IMAGES, questions=QUESTIONS)
    for name in ("quiet", "even", "killed"):
        (tmp_path / name).mkdir()
    quiet = undisturbed(odd(files), tmp_path / "quiet")

    even = srun(*odd(files, "vqav2", "model.batch_s=0.05"), cwd=tmp_path / "even", slurm=slurm)
    out, _ = even.communicate(timeout=PATIENCE)
    assert even.returncode == 0, out
    assert found(tmp_path / "even") == quiet
    counts = [path.read_bytes().count(b"\n") for path in (only_run(tmp_path / "even") / "predictions").iterdir()]
    assert sum(counts) == IMAGES * QUESTIONS
    assert len([count for count in counts if count]) == 2

    home = tmp_path / "killed"
    traces = tmp_path / "traces"
    words = odd(files, "vqav2", "model.batch_s=0.3", f"model.folder={traces}", "engine.heartbeat_s=10")
    process = srun(*words, cwd=home, slurm=slurm)
    logs = "results/runs/*/*/*/predictions/*.jsonl"
    until(lambda: sum(path.stat().st_size > 0 for path in home.glob(logs)) == 2)
    (second,) = (path.stem for path in traces.glob("*.pid") if _rank(path.stem) == "1")
    os.kill(int(second), signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0, out
    assert "missing" in out
    kept = answers(only_run(home))
    assert IMAGES * QUESTIONS / 3 <= len(kept) < IMAGES * QUESTIONS
    again = run_evalkit(*odd(files), cwd=home)
    assert again.code == 0, again.err
    assert found(home) == quiet


def _rank(pid: str) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(each.partition(b"=")[2].decode() for each in variables if each.startswith(b"SLURM_PROCID="))
