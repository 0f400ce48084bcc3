"""Whole runs against a loop written here: every setting away from its default must arrive.

The loop below has plain tensors, its own Adam, densifier and pruner. It shares with the project
the rasterizer, SSIM, the draws by seed and the order of images, which have tests of their own.
"""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train
from gs.data.demo import write_demo_scene
from gs.losses import ssim
from gs.model.gaussians import Gaussians
from gs.seeds import derive_seed
from gs.training.sampler import CameraSampler
from gs.training.trainer import Trainer
from kernels import add_langevin_noise, normals, rasterization, sample_masks

SEED = 5
ITERATIONS = 13
COMMON = f"""
    --iterations {ITERATIONS} --schedule published --device cpu --quiet --seed {SEED}
    --sh_degree 2 --sh_degree_interval 3 --sh_degree_from_iter 3
    --lambda_dssim 0.4 --position_lr_init 2e-3 --position_lr_final 1e-4 --position_lr_max_steps 10
    --feature_lr 0.02 --feature_rest_divisor 3 --opacity_lr 0.07 --scaling_lr 0.02
    --rotation_lr 0.03 --anneal_to 0.3 --anneal_from 0.25 --test_iterations 4 --save_iterations 5
"""
MASKS = """
    --densify_from_iter 2 --densify_until_iter 9 --densification_interval 3
    --densify_grad_threshold 0.0015 --percent_dense 0.02 --min_opacity 0.008
    --opacity_reset_interval 5 --mask_lr 0.9 --lambda_mask 0.7 --lambda_mask_factor 0.5
    --mask_from_iter 3 --mask_until_iter 8 --mask_prune_iter 4 --final_threshold 0.6
"""
MCMC = """
    --method 3dgs --densifier mcmc --densify_from_iter 50 --densify_until_iter 60 --budget 2x
    --noise_lr 4e3 --lambda_opacity 0.3 --lambda_scale 0.2 --initial_opacity 0.02
    --initial_scale 0.4 --random_background
"""
RATES = {"sh0": 0.02, "shN": 0.02 / 3, "opacities": 0.07, "scales": 0.02, "quats": 0.03}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine small views of the built-in scene."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=40, height=30)
    return folder


class Loop:
    """The published loop on plain tensors, one call of `step` per iteration."""

    def __init__(self, trainer: Trainer, *, white: bool, random: bool) -> None:
        model = trainer.gaussians
        self.p = {name: x.detach().clone() for name, x in model.params.items()}
        self.ids, self.next_id = model.rows["ids"].clone(), len(model)
        self.m = {name: torch.zeros_like(x) for name, x in self.p.items()}
        self.v = {name: torch.zeros_like(x) for name, x in self.p.items()}
        self.t = dict.fromkeys(self.p, 0)
        self.gradients, self.views = torch.zeros(len(model)), torch.zeros(len(model))
        self.cameras, self.extent = trainer.scene.train, trainer.scene.extent
        self.order = CameraSampler(len(self.cameras), SEED)
        self.white, self.random = white, random
        self.degree = 0

    def __len__(self) -> int:
        return len(self.ids)

    def background(self, step: int) -> Tensor:
        if self.random:
            seed = derive_seed(SEED, "background", step)
            return torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return torch.full((3,), float(self.white))

    def rates(self, step: int) -> dict[str, float]:
        share = min(step / 10, 1.0)
        means = self.extent * 2e-3 ** (1 - share) * 1e-4**share
        late = min(max((step - 2.5) / 7.5, 0.0), 1.0)
        return {"means": means, "mask_logits": 0.9, **{k: x * 0.3**late for k, x in RATES.items()}}

    def backward(self, step: int) -> dict[str, Tensor]:
        """Gradients of the iteration, and statistics for the densifier."""
        if step > 3 and step % 3 == 0:
            self.degree = min(self.degree + 1, 2)
        camera = self.cameras[self.order.next()]
        assert camera.image_path is not None
        truth = torch.from_numpy(np.array(Image.open(camera.image_path).convert("RGB"))) / 255.0
        p = {name: x.clone().requires_grad_() for name, x in self.p.items()}
        masked = {}
        if "mask_logits" in p:
            seed = derive_seed(SEED, "mask", step)
            masked = {"mask_logits": p["mask_logits"], "mask_seed": seed, "mask_ids": self.ids}
        colors, _, info = rasterization(
            p["means"],
            p["quats"],
            p["scales"].exp(),
            p["opacities"].sigmoid(),
            torch.cat([p["sh0"], p["shN"]], 1),
            camera.viewmat[None],
            camera.K[None],
            camera.width,
            camera.height,
            near_plane=0.2,
            sh_degree=self.degree,
            backgrounds=self.background(step)[None],
            **masked,
        )
        loss = 0.6 * (colors[0] - truth).abs().mean() + 0.4 * (1 - ssim(colors[0], truth))
        if masked and 3 <= step <= 8:
            loss = loss + 0.35 * info["masks"].mean().square()
        loss.backward()
        seen = (info["radii"][0] > 0).all(-1)
        half = torch.tensor([camera.width / 2, camera.height / 2])
        self.gradients += torch.where(seen, (info["means2d"].grad[0] * half).norm(dim=-1), 0.0)
        self.views += seen
        return {name: x.grad for name, x in p.items() if x.grad is not None}

    def adam(self, step: int, grads: dict[str, Tensor]) -> None:
        rates = self.rates(step)
        for name, g in grads.items():
            self.t[name] += 1
            t, m, v = self.t[name], self.m[name], self.v[name]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            deviation = (v / (1 - 0.999**t)).sqrt() + 1e-15
            self.p[name] -= rates[name] * (m / (1 - 0.9**t)) / deviation

    def gather(self, sources: Tensor, n_kept: int, new_ids: Tensor) -> None:
        """Rows that stay take their moments along, all others are new."""
        for name, x in self.p.items():
            self.p[name] = x[sources].clone()
            for moments in (self.m, self.v):
                moments[name] = moments[name][sources]
                moments[name][n_kept:] = 0
        self.ids = torch.cat([self.ids[sources[:n_kept]], new_ids.int()])
        self.gradients, self.views = torch.zeros(len(self)), torch.zeros(len(self))

    def never_drawn(self, step: int) -> Tensor:  # [N] bool
        drawn = torch.zeros(len(self), dtype=torch.bool)
        for draw in range(10):
            seed = derive_seed(SEED, "prune", step, draw)
            drawn |= sample_masks(self.p["mask_logits"], seed, self.ids) > 0.5
        return ~drawn

    def densify(self, step: int) -> tuple[int, int, int]:
        """Numbers of the cloned, the split and the pruned."""
        scales = self.p["scales"].exp()
        moving = (self.gradients / self.views).nan_to_num(nan=0.0) >= 0.0015
        small = scales.amax(-1) <= 0.02 * self.extent
        clones, parents = (x.nonzero()[:, 0] for x in (moving & small, moving & ~small))
        stay = (~(moving & ~small)).nonzero()[:, 0]
        seeds = [derive_seed(SEED, "split", step, child) for child in (0, 1)]
        noise = torch.stack([normals(seed, self.ids[parents]) for seed in seeds])
        w, x, y, z = torch.nn.functional.normalize(self.p["quats"][parents], dim=-1).unbind(-1)
        first = (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y))
        second = (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x))
        third = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
        R = torch.stack([*first, *second, *third], -1).reshape(-1, 3, 3)
        offsets = torch.einsum("nij,cnj->cni", R, noise * scales[parents])
        sources = torch.cat([stay, clones, parents, parents])
        n_stay, n_new = len(stay), len(sources) - len(stay)
        self.gather(sources, n_stay, torch.arange(self.next_id, self.next_id + n_new))
        self.next_id += n_new
        children = slice(len(self) - 2 * len(parents), len(self))
        self.p["means"][children] += offsets.flatten(0, 1)
        self.p["scales"][children] -= math.log(1.6)
        drop = (self.p["opacities"].sigmoid() < 0.008) | self.never_drawn(step)
        if step > 5:
            drop |= self.p["scales"].exp().amax(-1) > 0.1 * self.extent
        self.keep(~drop)
        return len(clones), len(parents), int(drop.sum())

    def keep(self, keep: Tensor) -> None:
        self.gather(keep.nonzero()[:, 0], int(keep.sum()), torch.arange(0))

    def reset_opacities(self) -> None:
        self.p["opacities"] = self.p["opacities"].clamp_max(math.log(0.01 / 0.99))
        self.m["opacities"], self.v["opacities"] = (torch.zeros(len(self)) for _ in range(2))


def vary(trainer: Trainer, name: str, factor: float, shift: float) -> None:
    """Add random numbers to a parameter: of spheres, rotations have no gradients."""
    values = trainer.gaussians.params[name].data
    values += factor * torch.rand(values.shape, generator=torch.Generator().manual_seed(2)) + shift


def close(trainer: Trainer, loop: Loop, start: dict[str, Tensor]) -> None:
    """All but a few numbers agree to a hundredth of what their parameter moved by."""
    assert trainer.gaussians.rows["ids"].tolist() == loop.ids.tolist()
    for name, want in loop.p.items():
        got = trainer.gaussians.params[name].detach()
        moved = (want - start[name][: len(want)]).square().mean().sqrt()
        assert moved > 0, name
        # a gradient that cancels to nearly nothing may have either sign, all that Adam's first
        # steps look at
        far = ((got - want).abs() > 0.01 * moved).float().mean()
        assert far < 0.01, f"{name}: {far:.2%} of the numbers are off by {moved:.1e} / 100"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("flag", ["--white_background", "--random_background"])
def test_mask_gaussian_with_every_setting_away_from_its_default(
    source: Path, tmp_path: Path, flag: str
) -> None:
    line = f"-s {source} -m {tmp_path} {COMMON} {MASKS} {flag}"
    trainer = train.build_trainer(train.parse(shlex.split(line)))
    assert trainer.gaussians.params["mask_logits"].data.unique(dim=0).tolist() == [[10.0, 1.0]]
    vary(trainer, "mask_logits", 24.0, -12.0)
    vary(trainer, "opacities", 8.0, -5.0)
    vary(trainer, "scales", 1.0, -0.5)
    loop = Loop(trainer, white="white" in flag, random="random" in flag)
    start = {name: x.clone() for name, x in loop.p.items()}

    events = []
    for step in range(1, ITERATIONS + 1):
        grads = loop.backward(step)
        if step in (3, 6):
            events.append(loop.densify(step))
            grads = {}
        if step == 5 or (step == 2 and loop.white):
            loop.reset_opacities()
            grads.pop("opacities", None)
        if step == 12:
            dropped = loop.never_drawn(step)
            events.append((0, 0, int(dropped.sum())))
            loop.keep(~dropped)
            grads = {}
        if step < ITERATIONS:
            loop.adam(step, grads)
    assert all(x > 0 for x in (*events[0], events[1][2], events[2][2])), events

    trainer.fit()
    close(trainer, loop, start)
    exported = trainer.exported()
    gap = loop.p["mask_logits"][:, 0] - loop.p["mask_logits"][:, 1]
    assert len(exported) == int((gap.sigmoid() > 0.6).sum())


@pytest.mark.usefixtures("one_thread")
def test_monte_carlo_with_every_setting_away_from_its_default(source: Path, tmp_path: Path) -> None:
    line = f"-s {source} -m {tmp_path} {COMMON} {MCMC}"
    trainer = train.build_trainer(train.parse(shlex.split(line)))
    plain = Gaussians.from_points(trainer.scene.points, trainer.scene.colors)
    want = plain.get_scales().mul(0.4).log().detach()
    torch.testing.assert_close(trainer.gaussians.params["scales"].detach(), want)
    opacities = trainer.gaussians.get_opacities().detach()
    torch.testing.assert_close(opacities, torch.full_like(opacities, 0.02))
    vary(trainer, "scales", 1.0, -0.5)
    loop = Loop(trainer, white=False, random=True)
    start = {name: x.clone() for name, x in loop.p.items()}
    for step in range(1, ITERATIONS + 1):
        grads = loop.backward(step)
        if step == ITERATIONS:
            break
        o, s = loop.p["opacities"].sigmoid(), loop.p["scales"].exp()
        grads["opacities"] += 0.3 / len(loop) * o * (1 - o)
        grads["scales"] += 0.2 / (3 * len(loop)) * s
        loop.adam(step, grads)
        seed = torch.tensor([derive_seed(SEED, "step", step), 0], dtype=torch.int32)
        add_langevin_noise(
            loop.p["means"],
            loop.p["quats"],
            loop.p["scales"],
            loop.p["opacities"],
            loop.ids,
            seed=seed,
            lr=torch.tensor([loop.rates(step)["means"]]),
            noise_lr=4e3,
            steepness=100.0,
            threshold=0.005,
        )
    trainer.fit()
    close(trainer, loop, start)
