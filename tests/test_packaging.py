"""The four ways to have evalkit: wheel, wheel inside the checkout, editable, bare checkout. Each finds the same."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import ROOT, only_run, scores, vqa_files

pytestmark = pytest.mark.slow

LEFT_OUT = (
    ".git", ".venv", "dist", "build", "__pycache__", "*.pyc", "*.egg-info", "runs", ".*_cache", ".hypothesis", "results"
)  # fmt: skip
RUN = ("model=fake", "task=vqav2", "data=files", "data.root=root", "data.check=false")


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run a command without the checkout on its path; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env: Mapping[str, str] = {**clean, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def machine(folder: Path) -> Path:
    """Make a fresh environment that borrows the packages of this one, not its evalkit; return its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth file is searched after the environment's own packages, and no .pth file in it is read.
    (own / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that nothing is built in the real one."""
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(ROOT / "results" / "published", copy / "results" / "published")
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a machine on which the wheel is installed."""
    python = machine(tmp_path_factory.mktemp("wheel"))
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=built)
    return python


@pytest.fixture(scope="module")
def wanted(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `list` prints with nothing but the checkout on the path."""
    printed = run(
        sys.executable, "-m", "evalkit", "list", cwd=tmp_path_factory.mktemp("bare"), PYTHONPATH=str(checkout)
    )
    assert "vqav2 = vqav2/val" in printed
    assert "blip2-tiny" in printed
    assert "zero-shot" in printed
    return printed


def where(python: Path | str, cwd: Path, **more: str) -> Path:
    """Return the folder that `import evalkit` finds."""
    return Path(run(python, "-c", "import evalkit; print(evalkit.__file__)", cwd=cwd, **more).strip()).parent


def works(python: Path | str, cwd: Path, **more: str) -> None:
    """Hold that a run goes through, and can be scored again."""
    vqa_files(cwd / "root")
    run(python, "-m", "evalkit", *RUN, cwd=cwd, **more)
    assert scores(only_run(cwd))["n"] == 12
    run(python, "-m", "evalkit", "score", only_run(cwd), cwd=cwd, **more)


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_that_the_checkout_needs(built: Path, checkout: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    parts = {"evalkit": "evalkit", "tasks": "evalkit/tasks", "configs": "evalkit/configs"}
    parts |= {"results/published": "evalkit/results/published"}
    assert names == {f"{place}/{name}" for part, place in parts.items() for name in files(checkout / part)}
    published = {name for name in names if name.startswith("evalkit/results/published/")}
    assert any(name.endswith("blip2.csv") for name in published)
    info = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= info


def test_the_demo_checkpoints_are_in_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".safetensors")]
    for model in ("blip2-tiny", "blip2-tiny-early"):
        for half in ("generate", "retrieve"):
            assert any(f"/{model}/{half}/" in name for name in names), (model, half)


def test_the_source_archive_holds_what_a_wheel_is_made_of_and_the_tests(built: Path, checkout: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for part in ("evalkit", "tasks", "configs", "results/published", "tests"):
        assert {f"{part}/{name}" for name in files(checkout / part)} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_works_from_any_folder(installed: Path, wanted: str, tmp_path: Path) -> None:
    assert "site-packages" in where(installed, tmp_path).parts
    assert run(installed, "-m", "evalkit", "list", cwd=tmp_path) == wanted
    works(installed, tmp_path)


def test_the_command_works_and_sees_a_module_beside_you(installed: Path, wanted: str, tmp_path: Path) -> None:
    command = installed.parent / "evalkit"
    assert run(command, "list", cwd=tmp_path) == wanted
    (tmp_path / "mine.py").write_text("from evalkit.models.fake import Fake\n\nclass Mine(Fake):\n    pass\n")
    vqa_files(tmp_path / "root")
    run(command, "model=custom", "model._target_=mine.Mine", *RUN[1:], cwd=tmp_path)
    assert scores(only_run(tmp_path, "vqav2", "custom"))["n"] == 12


def test_the_wheel_works_inside_the_checkout(installed: Path, wanted: str, checkout: Path, tmp_path: Path) -> None:
    assert run(installed, "-m", "evalkit", "list", cwd=checkout) == wanted
    assert run(installed.parent / "evalkit", "list", cwd=checkout) == wanted
    vqa_files(tmp_path / "root")
    for program in ([installed, "-m", "evalkit"], [installed.parent / "evalkit"]):
        run(*program, *RUN, f"data.root={tmp_path}/root", f"out={tmp_path}/results/runs", cwd=checkout)
    assert scores(only_run(tmp_path))["n"] == 12


def test_an_editable_install_sees_what_is_edited(checkout: Path, wanted: str, tmp_path: Path) -> None:
    python = machine(tmp_path / "editable")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "-e", checkout, cwd=tmp_path)
    assert where(python, tmp_path) == checkout / "evalkit"
    assert run(python, "-m", "evalkit", "list", cwd=tmp_path) == wanted
    works(python, tmp_path)
    new = checkout / "tasks" / "new_one.py"
    new.write_text(
        "import dataclasses\nfrom evalkit.registry import resolve_task\n"
        'TASKS = (dataclasses.replace(resolve_task("vqav2"), name="new_one/val", summary="Just written"),)\n'
    )
    try:
        assert "Just written" in run(python, "-m", "evalkit", "list", cwd=tmp_path)
    finally:
        new.unlink()


def test_a_bare_checkout_works(checkout: Path, tmp_path: Path) -> None:
    assert where(sys.executable, tmp_path, PYTHONPATH=str(checkout)) == checkout / "evalkit"
    works(sys.executable, tmp_path, PYTHONPATH=str(checkout))


def test_functions_of_tasks_have_names_that_another_process_can_import(installed: Path, tmp_path: Path) -> None:
    code = (
        "import pickle\nfrom evalkit import registry\n"
        "for family in registry.known_tasks():\n"
        "    for task in registry.load_tasks(family):\n"
        "        assert pickle.loads(pickle.dumps(task.load)), task.name\n"
        "        print(task.name)\n"
    )
    assert "refcoco/plus-testA" in run(installed, "-c", code, cwd=tmp_path).split()
