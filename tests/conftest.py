"""Fixtures that the whole suite shares."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

# Without a GPU, Triton kernels run in its interpreter; it must know before they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from gs.data.camera import Camera  # noqa: E402
from gs.data.scene import Scene  # noqa: E402
from gs.model.gaussians import Gaussians  # noqa: E402
from gs.model.renderer import render  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
LONGEST = (  # files, 15 to 60 seconds each
    "test_compile.py",
    "test_torchrun.py",
    "test_replicas.py",
    "test_command.py",
    "test_same_model.py",
    "test_train.py",
    "test_runs.py",
    "test_kill.py",
    "test_signals.py",
    "test_pipeline.py",
    "test_blending.py",
    "test_step.py",
    "test_live.py",
    "test_resume.py",
    "test_batch.py",
    "test_gradcheck.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        import quick_interpreter as quick  # pyright: ignore[reportMissingImports] # tests/kernels

        config.stash[quick.RESTORE] = quick.quicken()


def pytest_collection_finish() -> None:
    # what is imported stays: the collector need not go through it again and again
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the longest first: of several workers, none is left alone with one at the end
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with data/, golden/ and models/: $SPLATRIM_DATA, else ../shared; skips without."""
    root = Path(os.environ.get("SPLATRIM_DATA", REPO.parent / "shared"))
    if not (root / "golden").is_dir() and not (root / "data").is_dir():
        pytest.skip(f"no measuring data at {root}; set SPLATRIM_DATA")
    return root


@pytest.fixture
def spoil_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with an integer: what torch leaves uninitialised is that, or NaN, from then on."""

    def spoil(integer: int) -> None:
        for name in ("empty", "empty_like", "empty_strided"):
            make = getattr(torch, name)

            def spoiled(*args: Any, make: Callable[..., Tensor] = make, **options: Any) -> Tensor:
                x = make(*args, **options)
                with torch.no_grad():
                    return x.fill_(float("nan") if x.is_floating_point() else integer)

            monkeypatch.setattr(torch, name, spoiled)

    return spoil


@pytest.fixture
def interpreted() -> None:
    """For tests that give tensors on the CPU to kernels."""
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a CUDA device")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny images: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def write_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scene]:
    """Make a scene of the views of a few opaque Gaussians."""

    def write(
        points: Tensor,  # [N, 3]
        colors: Tensor,  # [N, 3]
        viewmats: list[Tensor],  # [4, 4]
        n_train: int,
        size: tuple[int, int],
        focal: float,
        start: tuple[Tensor, Tensor] | None = None,  # points and colours to train from
    ) -> Scene:
        folder = tmp_path_factory.mktemp("scene")
        truth = Gaussians.from_points(points, colors, sh_degree=0)
        truth.params["opacities"].data.fill_(3.0)
        width, height = size
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        cameras = []
        for i, viewmat in enumerate(viewmats):
            path = folder / f"{i}.png"
            camera = Camera(path.name, path, width, height, viewmat, K, width, height)
            with torch.no_grad():
                image = render(truth, camera, background=torch.zeros(3)).colors.clamp(0, 1)
            Image.fromarray((image * 255).round().numpy().astype(np.uint8)).save(path)
            cameras.append(camera)
        train, test = cameras[:n_train], cameras[n_train:]
        return Scene(train, test, *(start or (points, colors)), 1.5, folder, "colmap")

    return write


def turned(angle: float, distance: float = 4.0) -> Tensor:
    """A camera that looks at the origin, turned about the vertical axis. [4, 4]"""
    viewmat, radians = torch.eye(4), torch.tensor(angle)
    viewmat[0, 0] = viewmat[2, 2] = radians.cos()
    viewmat[0, 2], viewmat[2, 0] = radians.sin(), -radians.sin()
    viewmat[2, 3] = distance
    return viewmat


@pytest.fixture(scope="session")
def turned_view() -> Callable[[float], Tensor]:
    """`turned`, for tests that cannot import this file."""
    return turned


@pytest.fixture(scope="session")
def scene(write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor]) -> Scene:
    """Eight views of 80 Gaussians, six of them to train on."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(80, 3, generator=generator) * 2 - 1
    colors = torch.rand(80, 3, generator=generator)
    views = [turned_view(0.3 * i - 1.0) for i in range(8)]
    start = points + 0.05 * torch.randn(80, 3, generator=generator), colors
    return write_scene(points, colors, views, 6, (40, 30), 45.0, start)


@pytest.fixture(scope="session")
def write_published() -> Callable[[Path, dict[str, Any]], None]:
    """Write a named state as the original code does, or MaskGaussian's where there are masks."""
    groups = {
        "xyz": "means",
        "f_dc": "sh0",
        "f_rest": "shN",
        "opacity": "opacities",
        "mask": "mask_logits",
        "scaling": "scales",
        "rotation": "quats",
    }
    order = ("xyz", "f_dc", "f_rest", "scaling", "rotation", "opacity", "mask")
    statistics = ("max_radii", "densify_gradients", "densify_views")

    def write(path: Path, state: dict[str, Any]) -> None:
        params, optimizer = state["params"], state["optimizer"]
        names = {k: name for k, name in groups.items() if name in params}
        column = lambda x: x.view(-1, 1) if x.dim() == 1 else x  # noqa: E731
        leaves = {k: nn.Parameter(column(params[name].clone())) for k, name in names.items()}
        adam = torch.optim.Adam(
            [
                {"params": [x], "lr": optimizer["lrs"][names[k]], "name": k}
                for k, x in leaves.items()
            ],
            eps=1e-15,
        )
        for k, x in leaves.items():
            if names[k] in optimizer:
                adam.state[x] = {key: column(m) for key, m in optimizer[names[k]].items()}
                adam.state[x]["step"] = optimizer[names[k]]["step"]
        n = len(params["means"])
        maximum, *sums = (state["rows"].get(name, torch.zeros(n)) for name in statistics)
        entries = (
            state["active_sh_degree"],
            *(leaves[k] for k in order if k in leaves),
            maximum,
            *map(column, sums),
            adam.state_dict(),
            state["extent"],
        )
        torch.save((entries, state["step"]), path)

    return write


@pytest.fixture(scope="session")
def assert_close() -> Callable[[str, Tensor, Tensor, float], None]:
    """Compare by RMS-relative error: assert_close("v_means", got, want, 1e-3)."""

    def check(name: str, got: Tensor, want: Tensor, limit: float) -> None:
        assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, want {list(want.shape)}"
        assert torch.isfinite(got).all(), f"{name}: not finite"
        got64, want64 = got.detach().double().cpu(), want.detach().double().cpu()
        scale = want64.square().mean().sqrt().item() if want64.numel() else 0.0
        error = (got64 - want64).square().mean().sqrt().item() if want64.numel() else 0.0
        assert error <= limit * scale + 1e-12, f"{name}: RMS error {error:.3e} of {scale:.3e}"

    return check
