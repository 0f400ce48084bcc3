"""What is shown of a file of Gaussians that has no run about it."""

from pathlib import Path

import torch

from gs import find_model, save_model
from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.model.gaussians import Gaussians
from gs.training.trainer import Trainer
from gs.viewer.__main__ import PageConfig, write_run_page
from gs.viewer.run_model import load_shown


def test_a_file_is_shown_from_a_ring_about_it(tmp_path: Path) -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) + 5.0
    model = Gaussians.from_points(points, torch.full((50, 3), 0.5), sh_degree=1)
    save_model(tmp_path / "some.spz", model.to_ply(), "spz")
    shown = load_shown(tmp_path / "some.spz")
    assert len(shown.tensors["means"]) == 50 and shown.title == "some.spz"
    middle = points.mean(0)
    for camera in shown.cameras:
        seen = (camera.viewmat.double() @ torch.tensor([*middle.tolist(), 1.0]).double())[:3]
        assert seen[2] > 0 and seen[:2].abs().max() < 0.3 * seen[2]
    page = write_run_page(PageConfig(tmp_path / "some.spz"))
    assert page == tmp_path / "some.html" and page.stat().st_size > 10_000


def test_a_page_of_an_antialiased_model_says_so(scene: Scene, tmp_path: Path) -> None:
    for antialiased in (False, True):
        out = tmp_path / str(antialiased)
        config = TrainConfig(out, iterations=1, quiet=True, device="cpu", antialiased=antialiased)
        run = Trainer(config, scene)
        run.fit()
        model = find_model(out)[1]
        page = write_run_page(PageConfig(model, output=tmp_path / "page.html")).read_text()
        assert ('"antialiased": true' in page) == antialiased
