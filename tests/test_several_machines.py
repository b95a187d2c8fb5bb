"""Several machines share a run folder and nothing else; one that is lost leaves its share missing.

python -m pytest tests/test_several_machines.py
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evalkit.crew import Place
from evalkit.errors import ConfigError
from tests.support import (
    PATIENCE,
    answers,
    caption_files,
    environment,
    finish,
    found,
    odd,
    only_run,
    run_evalkit,
    start,
    undisturbed,
    until,
    vqa_files,
)

IMAGES, QUESTIONS = 40, 4
HEARTBEAT = "engine.heartbeat_s=15"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = vqa_files(tmp_path_factory.mktemp("files"), images=IMAGES, questions=QUESTIONS)
    return caption_files(root, images=IMAGES)


@pytest.fixture(scope="module")
def quiet(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What one process on one machine gives for a task."""
    return cache(lambda task: undisturbed(odd(files, task), tmp_path_factory.mktemp("quiet")))


def writers(folder: Path) -> int:
    """Logs with something in them."""
    return sum(path.stat().st_size > 0 for path in folder.glob("results/runs/*/*/*/predictions/*.jsonl"))


# -- what a launcher says


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         Place(rank=3, world_size=4, local_rank=1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, Place(rank=1, world_size=2)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
         Place(rank=2, world_size=4, local_rank=0)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
         Place(rank=2, world_size=4)),
        # torchrun inside of srun, one agent a node: torchrun knows more
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
         Place(rank=5, world_size=8, local_rank=1)),
        # a batch script that calls evalkit without srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Place()),
    ],
)  # fmt: skip
def test_place(variables: dict[str, str], place: Place) -> None:
    assert Place.from_environment(variables) == place


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "")])
def test_a_place_that_cannot_be_is_named(rank: str, size: str) -> None:
    with pytest.raises(ConfigError, match=f"RANK={rank} and WORLD_SIZE={size}"):
        Place.from_environment({"RANK": rank, "WORLD_SIZE": size})


# -- two processes that know of each other by rank and world size alone


@pytest.mark.parametrize("task", ["vqav2", "retrieval"])
def test_two_machines_share_the_work(files: Path, quiet: Any, tmp_path: Path, task: str) -> None:
    both = [
        start(*odd(files, task, "model.batch_s=0.02"), cwd=tmp_path, RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    for process in both:
        ran = finish(process)
        assert ran.code == 0, ran.err
    assert found(tmp_path) == quiet(task)
    run = only_run(tmp_path)
    lines = [path.read_bytes().count(b"\n") for path in (run / "predictions").glob("*.jsonl")]
    assert sum(lines) == len(answers(run))  # each sample was asked by one of them alone
    assert min(count for count in lines if count) >= sum(lines) / 4


@pytest.mark.parametrize(
    ("task", "lost"),
    [
        ("vqav2", 0),
        ("retrieval", 1),
        pytest.param("vqav2", 1, marks=pytest.mark.long),
        pytest.param("retrieval", 0, marks=pytest.mark.long),
    ],
)
def test_a_lost_machine_leaves_its_share_missing(files: Path, quiet: Any, tmp_path: Path, task: str, lost: int) -> None:
    both = [
        start(*odd(files, task, "model.batch_s=0.1", HEARTBEAT), cwd=tmp_path, RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    until(lambda: writers(tmp_path) == 2 or (task == "retrieval" and list(tmp_path.glob("results/runs/*/*/*/itc"))))
    both[lost].kill()
    both[lost].communicate(timeout=PATIENCE)
    ran = finish(both[1 - lost])
    assert ran.code == 3, ran.err
    assert "nobody has written anything for 15 s" in ran.err
    run = only_run(tmp_path)
    kept = answers(run)
    assert len(kept) < len(quiet(task)[0])
    if task == "vqav2":
        assert len(kept) >= len(quiet(task)[0]) / 3  # a share, and what the other had done
    missing = len(quiet(task)[0]) - len(kept)  # whoever is left says so
    assert f"of {len(quiet(task)[0])} samples {missing} are missing" in ran.err
    assert not (run / "scores.json").exists()
    again = run_evalkit(*odd(files, task, "devices=2"), cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet(task)


def test_what_failed_and_may_fail_ends_well_on_every_machine(tmp_path: Path) -> None:
    files = vqa_files(tmp_path / "files", images=4, questions=QUESTIONS)
    (files / "val2014" / f"COCO_val2014_{2:012d}.png").write_bytes(b"torn")
    for allowed, code in (("max_failed=3", 3), ("max_failed=4", 0)):
        words = odd(files, "vqav2", "engine.heartbeat_s=2", allowed)
        both = [start(*words, cwd=tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
        for process in both:
            ran = finish(process)
            assert ran.code == code, ran.err
            assert ("nothing is scored" in ran.err) is (code == 3)


def test_a_later_start_may_have_any_number_of_machines(files: Path, quiet: Any, tmp_path: Path) -> None:
    one_of_three = run_evalkit(*odd(files, "vqav2", "engine.heartbeat_s=2"), cwd=tmp_path, RANK="0", WORLD_SIZE="3")
    assert one_of_three.code == 3, one_of_three.err
    both = [start(*odd(files), cwd=tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in both:
        ran = finish(process)
        assert ran.code == 0, ran.err
    assert found(tmp_path) == quiet("vqav2")


# -- a network file system: what another machine writes is seen late, and in part


def test_lines_of_another_machine_that_become_visible_late(files: Path, quiet: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = run_evalkit(*odd(files, "vqav2", "engine.heartbeat_s=1"), cwd=elsewhere, RANK="1", WORLD_SIZE="2")
    assert other.code == 3, other.err
    (theirs,) = (path for path in (only_run(elsewhere) / "predictions").iterdir() if path.stat().st_size)
    data = theirs.read_bytes()
    here = start(*odd(files, "vqav2", "engine.heartbeat_s=8"), cwd=tmp_path, RANK="0", WORLD_SIZE="2")
    until(lambda: writers(tmp_path))
    (folder,) = tmp_path.glob("results/runs/*/*/*/predictions")
    mine = next(path for path in folder.iterdir() if path.stat().st_size)
    until(lambda: mine.read_bytes().count(b"\n") == IMAGES * QUESTIONS - data.count(b"\n"))
    seen = folder / theirs.name
    third = len(data) // 3
    seen.touch()  # the name first
    time.sleep(2)
    seen.write_bytes(data[:third] + bytes(len(data) - third))  # its size, a line in two, and pages still to come
    shown = seen.stat().st_mtime_ns
    time.sleep(2)
    with seen.open("r+b") as stream:
        stream.write(data[: 2 * third])
    os.utime(seen, ns=(shown, shown))
    time.sleep(2)
    with seen.open("r+b") as stream:  # all of it: neither the size nor the time says so
        stream.write(data)
    os.utime(seen, ns=(shown, shown))
    ran = finish(here)
    assert ran.code == 0, ran.err
    assert "nobody has written" not in ran.err
    assert found(tmp_path) == quiet("vqav2")
    assert mine.read_bytes().count(b"\n") + data.count(b"\n") == IMAGES * QUESTIONS  # nothing was asked twice


@pytest.fixture
def views(tmp_path: Path) -> Iterator[list[Path]]:
    """One folder as two machines see it, each through a cache of its own that is some seconds old."""
    if shutil.which("bindfs") is None or os.geteuid() != 0:
        pytest.skip("a file system with caches as NFS has them is made with bindfs, by root")
    seconds = 6
    both = [tmp_path / "view-0", tmp_path / "view-1"]
    (tmp_path / "truth").mkdir()
    mounted = []
    try:
        for view in both:
            view.mkdir()
            options = ",".join(f"{what}_timeout={seconds}" for what in ("attr", "entry", "negative"))
            made = subprocess.run(
                ["bindfs", "-o", options, str(tmp_path / "truth"), str(view)], capture_output=True, text=True
            )
            if made.returncode:
                pytest.skip(f"FUSE is not permitted here: {made.stderr.strip()}")
            mounted.append(view)
        assert not (both[1] / "late").exists()
        (both[0] / "late").touch()
        assert not (both[1] / "late").exists(), "else nothing is late here"
        yield both
    finally:
        for view in mounted:
            subprocess.run(["umount", "-l", str(view)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqav2", pytest.param("retrieval", marks=pytest.mark.long)])
def test_two_machines_that_see_each_other_late(files: Path, quiet: Any, views: list[Path], task: str) -> None:
    words = odd(files, task, "engine.heartbeat_s=30", "model.batch_s=0.02")
    both = [start(*words, cwd=view, RANK=str(rank), WORLD_SIZE="2") for rank, view in enumerate(views)]
    for process in both:
        ran = finish(process)
        assert ran.code == 0, ran.err
    truth = views[0].parent / "truth"
    assert found(truth) == quiet(task)
    lines = [path.read_bytes().count(b"\n") for path in (only_run(truth) / "predictions").glob("*.jsonl")]
    assert sum(lines) == len(quiet(task)[0])


# -- two hosts for real: network namespaces with addresses of their own, torchrun across them


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    address: str
    link: str

    def popen(self, *words: str, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *words], cwd=cwd, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def unplug(self) -> None:
        """Cut the wire: nothing reaches this host any more."""
        _ip("-n", self.name, "link", "set", self.link, "down")

    def kill(self) -> None:
        """Kill -9 everything that runs on this host."""
        for pid in subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces are not permitted here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts with a wire between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("two hosts are made with `ip netns` (iproute2), by root alone")
    tag = f"{os.getpid() % 100000}"
    pair = [Host(f"evk{side}{tag}", f"10.213.7.{number}", f"ev{side}{tag}") for number, side in enumerate("ab", 1)]
    try:
        for host in pair:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        a, b = pair
        _ip("link", "add", a.link, "netns", a.name, "type", "veth", "peer", "name", b.link, "netns", b.name)
        for host in pair:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.link)
            _ip("-n", host.name, "link", "set", host.link, "up")
        yield pair
    finally:
        for host in pair:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def torchrun(hosts: list[Host], number: int, *words: str, cwd: Path) -> subprocess.Popen[str]:
    """Start torchrun on a host; the first one keeps the rendezvous."""
    options = [
        "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={hosts[0].address}:29431",
        "--rdzv-id=evalkit", f"--rdzv-conf=is_host={int(number == 0)},join_timeout=200",
        f"--local-addr={hosts[number].address}",
    ]  # fmt: skip
    return hosts[number].popen(
        sys.executable, "-m", "torch.distributed.run", *options, "-m", "evalkit", *words, cwd=cwd
    )


@pytest.mark.slow
def test_torchrun_across_two_hosts(files: Path, quiet: Any, tmp_path: Path, hosts: list[Host]) -> None:
    both = [torchrun(hosts, number, *odd(files, "vqav2", HEARTBEAT), cwd=tmp_path) for number in range(2)]
    for process in both:
        ran = finish(process)
        assert ran.code == 0, ran.out
    assert writers(tmp_path) == 2
    assert found(tmp_path) == quiet("vqav2")


@pytest.mark.slow
def test_a_host_that_is_cut_off(files: Path, quiet: Any, tmp_path: Path, hosts: list[Host]) -> None:
    words = odd(files, "vqav2", "model.batch_s=0.5", HEARTBEAT)
    both = [torchrun(hosts, number, *words, cwd=tmp_path) for number in range(2)]
    until(lambda: writers(tmp_path) == 2)
    hosts[1].unplug()
    time.sleep(1)
    hosts[1].kill()
    both[1].communicate(timeout=PATIENCE)
    ran = finish(both[0])
    # evalkit ends with 3; torchrun reports that and ends with 1, as it does for every exit code of its processes.
    assert ran.code == 1, ran.out
    assert "nobody has written anything for 15 s" in ran.out
    assert "missing" in ran.out
    assert "exitcode  : 3" in ran.out
    run = only_run(tmp_path)
    kept = answers(run)
    assert IMAGES * QUESTIONS / 3 <= len(kept) < IMAGES * QUESTIONS
    assert not (run / "scores.json").exists()
    again = run_evalkit(*odd(files), cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_the_host_of_the_rendezvous_is_lost(
    files: Path, quiet: Any, tmp_path: Path, hosts: list[Host], silent: bool
) -> None:
    """The other torchrun cannot go on without it and stops its process, which keeps what it has written."""
    # A connection that nobody answers is given up after 15 attempts, a quarter of an hour; here after 5, some seconds.
    hosts[1].popen("sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2", cwd=tmp_path).wait(PATIENCE)
    words = odd(files, "vqav2", "model.batch_s=0.5", HEARTBEAT)
    both = [torchrun(hosts, number, *words, cwd=tmp_path) for number in range(2)]
    until(lambda: writers(tmp_path) == 2)
    before = answers(only_run(tmp_path))
    if silent:
        hosts[0].unplug()
        time.sleep(1)
    hosts[0].kill()
    both[0].communicate(timeout=PATIENCE)
    ran = finish(both[1])
    assert ran.code == 1, ran.out
    assert "RendezvousConnectionError" in ran.out
    assert "stopped; everything answered is kept" in ran.out
    kept = answers(only_run(tmp_path))
    assert before.items() <= kept.items()
    assert kept.items() <= quiet("vqav2")[0].items()
    assert len(kept) < IMAGES * QUESTIONS
    again = run_evalkit(*odd(files, "vqav2", "devices=2"), cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")
