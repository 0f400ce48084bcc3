"""Mutants of pruning/: masks, scores, decisions and presets."""

from mutant import Mutant

MASKS = ("test_mask_gaussian.py",)
LP = ("test_lp_3dgs.py",)
SCORES = ("test_scores.py", "-k not kernels")
NUMBERS = ("test_constants.py",)

PRUNING = [
    # MaskGaussian
    Mutant(
        "mask loss is the mean itself",
        "return weight * (n_used / n).square()",
        "return weight * (n_used / n)",
        MASKS,
    ),
    Mutant(
        "mask loss leaves out its last iteration",
        "self.config.mask_from_iter <= step and first <= self.config.mask_until_iter",
        "self.config.mask_from_iter <= step and first < self.config.mask_until_iter",
        MASKS,
    ),
    Mutant(
        "mask loss without its factor",
        "weight = self.config.lambda_mask * self.config.lambda_mask_factor",
        "weight = self.config.lambda_mask",
        MASKS,
    ),
    Mutant(
        "pruning needs one draw instead of ten", "PRUNE_SAMPLES = 10", "PRUNE_SAMPLES = 1", MASKS
    ),
    Mutant(
        "pruning draws are the rendering's",
        'derive_seed(self.seed, "prune", step, draw)',
        'derive_seed(self.seed, "mask", step + draw)',
        MASKS,
    ),
    Mutant(
        "pruning drops who was drawn", "return ~sampled_in_any(", "return sampled_in_any(", MASKS
    ),
    Mutant(
        "masks are pruned while densifying ends later",
        "due is not None and due >= self.densify_until",
        "due is not None",
        MASKS,
    ),
    Mutant(
        "the same masks in every iteration",
        'derive_seed(self.seed, "mask", step)}',
        'derive_seed(self.seed, "mask")}',
        MASKS,
    ),
    Mutant(
        "final threshold on the wrong side",
        "return logits[:, 0] - logits[:, 1] > math.log(share / (1.0 - share))",
        "return logits[:, 0] - logits[:, 1] > math.log((1.0 - share) / share)",
        MASKS,
    ),
    Mutant(
        "published beta saves by threshold",
        '"published-beta": {"final_mask": "sample"},',
        '"published-beta": {},',
        ("test_published.py",),
    ),
    # LP-3DGS
    Mutant(
        "LP-3DGS masks ignore scores",
        'x = (gaussians.params["mask_logits"] * gaussians.rows[SCORES]).flatten()',
        'x = gaussians.params["mask_logits"].flatten()',
        LP,
    ),
    Mutant(
        "LP-3DGS loss has no sigmoid",
        "self.config.lambda_mask * torch.sigmoid(logits).mean()",
        "self.config.lambda_mask * logits.mean()",
        LP,
    ),
    Mutant(
        "LP-3DGS without weight decay",
        "logits.mul_((1.0 - config.logit_lr * config.logit_decay) ** self.n_images)",
        "logits.mul_(1.0)",
        LP,
    ),
    Mutant(
        "LP-3DGS keeps the others",
        "keep = logits >= self.lowest_logit",
        "keep = logits < self.lowest_logit",
        LP,
    ),
    Mutant(
        "LP-3DGS lambda ten times",
        'lambda_mask: Annotated[float, NOT_NEGATIVE] = 0.0005\n    """Weight of mean(sig',
        'lambda_mask: Annotated[float, NOT_NEGATIVE] = 0.005\n    """Weight of mean(sig',
        NUMBERS,
    ),
    Mutant(
        "published LP-3DGS decides by threshold",
        '"published-radsplat": {"score_source": "masked", "decision": "sample"},',
        '"published-radsplat": {"score_source": "masked"},',
        ("test_published.py",),
    ),
    Mutant(
        "degree 0 is not kept in published Mini-Splatting",
        '{"sh_degree_from_iter": 15_000}',
        "{}",
        ("test_published.py",),
    ),
    Mutant(
        "Gumbel-Sigmoid without noise",
        "return torch.sigmoid((logits + noise) / temperature)",
        "return torch.sigmoid(logits / temperature)",
        ("test_relaxations.py",),
    ),
    # scores and rules
    Mutant(
        "RadSplat's score sums over views",
        'total = torch.maximum(total, found["max"].double())',
        'total += found["max"].double()',
        SCORES,
    ),
    Mutant(
        "outdoor score ignores who is heaviest",
        "total += torch.where(top, mean, 0.0)",
        "total += mean",
        SCORES,
    ),
    Mutant(
        "LightGaussian without opacity",
        "total = total * opacities * volume_factors(gaussians, v_pow)",
        "total = total * volume_factors(gaussians, v_pow)",
        SCORES,
    ),
    Mutant(
        "LightGaussian's exponent",
        'v_pow: Annotated[float, NOT_NEGATIVE] = 0.1\n    """Exponent',
        'v_pow: Annotated[float, NOT_NEGATIVE] = 0.2\n    """Exponent',
        NUMBERS,
    ),
    Mutant(
        "reference volume from below",
        "log_volumes.sort(descending=True).values[int(VOLUME_RANK",
        "log_volumes.sort().values[int(VOLUME_RANK",
        SCORES,
    ),
    Mutant(
        "RadSplat drops what equals its threshold",
        "return scores >= threshold",
        "return scores > threshold",
        SCORES,
    ),
    Mutant(
        "of equal scores later rows stay",
        "keys.sort(descending=True, stable=True).indices[:k]",
        "keys.flip(0).sort(descending=True, stable=True).indices[:k].neg() - 1",
        SCORES,
    ),
    Mutant("cumulative cut keeps one more", ".sum()) - 1, 0))", ".sum()), 0))", SCORES),
    Mutant(
        "sampling ignores scores",
        "return _largest(scores.double().log() - torch.log(-torch.log1p(-u)), k)",
        "return _largest(-torch.log(-torch.log1p(-u)), k)",
        SCORES,
    ),
    Mutant(
        "later prunings remove as much",
        "self.ratio * self.decay**index",
        "self.ratio",
        ("test_score_pruning.py",),
    ),
]
