"""Mutants of gs/: the loop, densifiers, optimizer, draws, files."""

from mutant import Mutant

WIRING = ("test_wiring.py",)
DENSIFY = ("test_adaptive.py", "test_adaptive_parts.py")
TAMING = ("test_taming.py",)
CHAIN = ("test_mcmc.py",)
NUMBERS = ("test_constants.py",)
FORMATS = ("test_model_file.py",)
BATCH, SEEN, ORDER = ("test_batch.py",), ("test_seen.py",), ("test_order.py",)

GS = [
    # the loop
    Mutant(
        "rates are never updated",
        "rates = learning_rates(self.optimizer, self.optim, extent=self.scene.extent, step=first)",
        "rates = learning_rates(self.optimizer, self.optim, extent=self.scene.extent, step=1)",
        WIRING,
    ),
    Mutant(
        "background is ignored",
        "render(splats, view, background=inputs.background, **keywords)",
        "render(splats, view, **keywords)",
        WIRING,
    ),
    Mutant(
        "poses move in steps that do not count",
        "            betas=BETAS,\n            skip=skip,",
        "            betas=BETAS,\n            skip=None,",
        ("test_captured_photographs.py",),
    ),
    Mutant(
        "test poses stay behind",
        "centre = s * R @ _centre(camera) + t",
        "centre = _centre(camera)",
        ("test_pose_fit.py",),
    ),
    Mutant(
        "the farthest point of a pixel counts",
        "order = depths.argsort()  #",
        "order = depths.argsort(descending=True)  #",
        ("test_tracks.py",),
    ),
    Mutant(
        "extent 1 in the densifier",
        "            extent=self.scene.extent,\n            iterations=self.config.iterations,",
        "            extent=1.0,\n            iterations=self.config.iterations,",
        WIRING,
    ),
    Mutant(
        "extent 1 in the rates of positions",
        "return extent * math.exp(start + t * (end",
        "return math.exp(start + t * (end",
        WIRING,
    ),
    Mutant(
        "no D-SSIM in training",
        "photometric_gradient(image, target, lambda_dssim)",
        "photometric_gradient(image, target, 0.0)",
        WIRING,
    ),
    Mutant(
        "strategies' losses are dropped",
        "loss = total(values[0], v_images, images, *terms)",
        "loss = total(values[0], v_images, images)",
        WIRING,
    ),
    # steps of several images
    Mutant("a batch learns as slowly", "gain = math.sqrt(n_images)", "gain = 1.0", BATCH),
    Mutant("a batch forgets as slowly", "betas[0] ** n_images", "betas[0]", BATCH),
    Mutant("eps of a mean", "eps * gain)", "eps / gain)", BATCH),
    Mutant("terms count once per step", "else gain * x for x in", "else x for x in", BATCH),
    Mutant(
        "statistics of the first size", "for out in ctx.renderings:", "for out in [ctx.out]:", BATCH
    ),
    Mutant(
        "events of image 0", "if rest < n_images else None", "if rest <= n_images else None", BATCH
    ),
    Mutant("moments of a single image", "ratio = now / before", "ratio = 1.0", BATCH),
    Mutant(
        "every image is shown the first view",
        "view=view.one(k), others=()",
        "view=view.one(0)",
        BATCH,
    ),
    # what a step sees
    Mutant("skipped rows age", "steps += seen", "steps += 1", SEEN),
    Mutant("rows have the model's age", "t = steps.double()", "t = steps.double() * 0 + 1", SEEN),
    Mutant(
        "regularisers by who is seen, not how often",
        'out.info["observations"] = context.observations',
        'out.info["observations"] = (context.observations > 0).float()',
        SEEN,
    ),
    Mutant("moved and seen", "(moved & ~seen)", "moved", SEEN),
    # draws by id
    Mutant("new ids by row", "parents.argsort(stable=True)", "torch.arange(len(parents))", ORDER),
    Mutant("ties of a draw by row", "rows = rows[ids[rows].argsort()]", "rows = rows + 0", ORDER),
    Mutant(
        "the optimizer steps last, too", "elif step < self.config.iterations:", "elif True:", WIRING
    ),
    Mutant(
        "SH degree from the first iteration",
        "return due is not None and due > self.sh_degree_from_iter",
        "return due is not None",
        WIRING,
    ),
    Mutant(
        "higher SH bands learn as fast",
        "c.feature_lr / c.feature_rest_divisor",
        "c.feature_lr",
        WIRING,
    ),
    Mutant("rates do not anneal", "return config.anneal_to**t", "return 1.0", WIRING),
    Mutant(
        "noise of positions has another rate",
        'rate = learning_rate(self.optimizer, "means")',
        'rate = learning_rate(self.optimizer, "scales")',
        WIRING,
    ),
    Mutant(
        "the exported model has all rows",
        "keep = rows if keep is None else keep & rows",
        "keep = None",
        WIRING,
    ),
    Mutant(
        "white is black", "return (float(self.white_background),) * 3", "return (0.0,) * 3", WIRING
    ),
    # default densifier
    Mutant(
        "clones are split and the split cloned",
        "cloned, parted = moving & small, moving & ~small",
        "cloned, parted = moving & ~small, moving & small",
        DENSIFY,
    ),
    Mutant(
        "threshold is twice as high",
        "moving = means >= config.densify_grad_threshold",
        "moving = means > 2 * config.densify_grad_threshold",
        DENSIFY,
    ),
    Mutant(
        "statistics are never cleared",
        "            gaussians.rows[name].zero_()\n        counts = ctx.total(n_clones,",
        "            pass\n        counts = ctx.total(n_clones,",
        WIRING,
    ),
    Mutant("children are as large", "(log_scales - math.log(CHILD_SHRINK))", "log_scales", DENSIFY),
    Mutant(
        "children are not turned",
        'rotate(gaussians.params["quats"].detach()[parents], noise * log_scales.exp())',
        "noise * log_scales.exp()",
        DENSIFY,
    ),
    Mutant(
        "densifies in the last iteration of its window",
        "self.densify_from_iter < due < self.densify_until_iter",
        "self.densify_from_iter < due <= self.densify_until_iter",
        DENSIFY,
    ),
    Mutant("opacities are reset upwards", ".clamp_max(limit)\n", ".clamp_min(limit)\n", DENSIFY),
    Mutant(
        "oversized are pruned from the start",
        "        if step > config.opacity_reset_interval:\n            drop |=",
        "        if True:\n            drop |=",
        DENSIFY,
    ),
    Mutant(
        "what others name stays",
        "grown.keep(~drop if others is None else ~(drop | others), ctx.optimizer)\n"
        "        for name in (GRADIENTS, VIEWS):\n            gaussians.rows[name].zero_()\n"
        "        counts = ctx.total(",
        "grown.keep(~drop, ctx.optimizer)\n"
        "        for name in (GRADIENTS, VIEWS):\n            gaussians.rows[name].zero_()\n"
        "        counts = ctx.total(",
        DENSIFY,
    ),
    Mutant(
        "gradients count in pixels",
        "norms = (v_means2d * half_size).norm(dim=-1)",
        "norms = v_means2d.norm(dim=-1)",
        DENSIFY,
    ),
    # Taming-3DGS
    Mutant(
        "Taming prunes by score",
        "            weak,\n            1.0 / scores.clamp_min(MIN_SCORE),",
        "            weak,\n            scores.clamp_min(MIN_SCORE),",
        TAMING,
    ),
    Mutant("Taming prunes all of the weak", "PRUNED_SHARE = 0.5", "PRUNED_SHARE = 1.0", TAMING),
    Mutant("Taming's weight of opacity", '"opacity": 100.0,', '"opacity": 10.0,', NUMBERS),
    Mutant(
        "Taming grows evenly",
        "math.floor((self.limit(n_start) - n_start) * (2 * x - x * x))",
        "math.floor((self.limit(n_start) - n_start) * x)",
        TAMING,
    ),
    Mutant(
        "Taming's scores count what is hidden",
        "values = torch.where(visible, values, 0.0).nan_to_num(",
        "values = values.nan_to_num(",
        TAMING,
    ),
    Mutant(
        "Taming draws by row",
        "keys[rows].sort(descending=True, stable=True).indices[:k]",
        "torch.arange(len(rows), device=rows.device)[:k]",
        TAMING,
    ),
    # Markov chain Monte Carlo
    Mutant(
        "relocated opacity is too high",
        "return (new.log() - transparency).to(logits), factors.to(logits)",
        "return (new.log() - transparency).to(logits) + 0.1, factors.to(logits)",
        CHAIN,
    ),
    Mutant(
        "growth of 10 %",
        'growth: Annotated[float, NOT_NEGATIVE] = 0.05\n    """Share of',
        'growth: Annotated[float, NOT_NEGATIVE] = 0.1\n    """Share of',
        NUMBERS,
    ),
    Mutant(
        "noise rate",
        "noise_lr: Annotated[float, NOT_NEGATIVE] = 5e5",
        "noise_lr: Annotated[float, NOT_NEGATIVE] = 5e4",
        NUMBERS,
    ),
    Mutant(
        "weight of scales",
        "lambda_scale: Annotated[float, NOT_NEGATIVE] = 0.01",
        "lambda_scale: Annotated[float, NOT_NEGATIVE] = 0.02",
        NUMBERS,
    ),
    Mutant(
        "initial opacity",
        "initial_opacity: Annotated[float, INNER_SHARE] = 0.5",
        "initial_opacity: Annotated[float, INNER_SHARE] = 0.1",
        NUMBERS,
    ),
    Mutant("initial scale is ignored", "math.log(self.config.initial_scale)", "0.0", WIRING),
    Mutant(
        "moments survive relocation",
        "    clear_moments(gaussians, optimizer, rows)\n\n\ndef shares",
        "\n\ndef shares",
        CHAIN,
    ),
    Mutant(
        "the dead are drawn from, too",
        "weights = torch.where(stay & ~dead, opacities, 0.0)",
        "weights = torch.where(stay, opacities, 0.0)",
        CHAIN,
    ),
    # draws
    Mutant(
        "every epoch has one order",
        'derive_seed(self.seed, "cameras", epoch)',
        'derive_seed(self.seed, "cameras")',
        ("test_sampler.py",),
    ),
    Mutant(
        "seeds forget their keys",
        "state = _splitmix64(state ^ (key & _MASK64))",
        "state = _splitmix64(state)",
        ("test_sampler.py",),
    ),
    Mutant(
        "a resumed run starts an epoch",
        'int(state["position"]) if same else 0',
        "0",
        ("test_sampler.py",),
    ),
    # rows
    Mutant(
        "new rows inherit moments",
        "torch.index_select(x, 0, index, out=out[: len(index)])",
        "torch.index_select(x, 0, index, out=out[: len(index)])\n    out[len(index) :] = x[:1]",
        ("test_optimizer.py", "test_adaptive.py"),
    ),
    Mutant(
        "neighbours are averaged over two", "k: int = 3,", "k: int = 2,", ("test_gaussians.py",)
    ),
    # files to send, and flights
    Mutant(
        "SPZ loses signs of quaternions",
        "sign << np.uint32(9) | share",
        "share",
        FORMATS,
    ),
    Mutant(
        "SPZ takes the largest component's sign as it is",
        "signs = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1, 1)",
        "signs = 1",
        FORMATS,
    ),
    Mutant(
        "chunks of a compressed .ply are far apart",
        "model = model.rows(morton_order(torch.from_numpy(model.means)).numpy())",
        "model = model.rows(np.arange(len(model.means)))",
        FORMATS,
    ),
    Mutant("a .glb's w comes first", "model.quats[:, [1, 2, 3, 0]],", "model.quats,", FORMATS),
    Mutant(
        "exports of an older model are shown",
        'if entry is None or entry["model"] != mark_of(folder, iteration):',
        "if entry is None:",
        ("test_export.py",),
    ),
    Mutant(
        "the PSNR noted is the old model's",
        '(("ply_psnr", tensors), ("psnr", written))',
        '(("ply_psnr", tensors), ("psnr", tensors))',
        ("test_export.py",),
    ),
    Mutant(
        "the orbit is at no height",
        "+ height * up",
        "",
        ("test_camera_path.py",),
    ),
    Mutant(
        "far is bright",
        "(1 / depth.clamp_min(1e-6) - low)",
        "(depth - low)",
        ("test_video.py",),
    ),
]
