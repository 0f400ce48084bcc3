"""Both wheels hold exactly what they declare, and the small one works under its own name."""

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("build", reason="needs the packages build and hatchling")
pytest.importorskip("hatchling", reason="needs the packages build and hatchling")

USE = """
import sys
import torch
from splatrim_kernels.rasterization import rasterization
from splatrim_kernels.compat import GaussianRasterizer

K = torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]])
colors, alphas, info = rasterization(
    torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
    torch.full((1, 3), 0.3), torch.ones(1), torch.ones(1, 3), torch.eye(4)[None], K, 16, 16,
)
assert colors.shape == (1, 16, 16, 3) and alphas[0, 8, 8] > 0.9, alphas[0, 8, 8]
assert "kernels" not in sys.modules and "gs" not in sys.modules
print(sys.modules["splatrim_kernels"].__file__)
"""


def _build(project: Path, out: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(project)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def _sources(folder: Path) -> set[str]:
    """Python files of a folder, and what pages are made of, named from its parent."""
    files = [path for path in folder.rglob("*") if path.suffix in (".py", ".js", ".css", ".vert")]
    return {path.relative_to(folder.parent).as_posix() for path in files}


def _contents(wheel: zipfile.ZipFile) -> tuple[set[str], str]:
    """Files beside the metadata, and the METADATA text."""
    info = [n for n in wheel.namelist() if PurePosixPath(n).parts[0].endswith(".dist-info")]
    (metadata,) = [name for name in info if name.endswith("/METADATA")]
    return set(wheel.namelist()) - set(info), wheel.read(metadata).decode()


def test_wheel_of_the_whole(repo: Path, tmp_path: Path) -> None:
    with _build(repo, tmp_path) as wheel:
        files, metadata = _contents(wheel)
    assert files == set().union(
        *(_sources(repo / name) for name in ("kernels", "gs", "pruning", "splatrim"))
    )
    assert {"gs/viewer/viewer.js", "gs/viewer/splats.vert", "gs/report/report.css"} <= files
    assert "\nName: splatrim\n" in metadata


def test_wheel_of_the_kernels(repo: Path, tmp_path: Path) -> None:
    with _build(repo / "kernels", tmp_path) as wheel:
        files, metadata = _contents(wheel)
        wheel.extractall(tmp_path / "site")
    renamed = {"splatrim_" + name for name in _sources(repo / "kernels")}
    assert files == renamed
    assert "\nName: splatrim-kernels\n" in metadata

    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'site')\n{USE}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path, done.stdout.strip()).is_relative_to(tmp_path / "site")


def test_both_have_one_version(repo: Path) -> None:
    lines = [
        next(line for line in path.read_text().splitlines() if line.startswith("version ="))
        for path in (repo / "pyproject.toml", repo / "kernels" / "pyproject.toml")
    ]
    assert lines[0] == lines[1]
