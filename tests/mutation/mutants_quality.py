"""Mutants of the densifier by absolute gradients, of selection and merging, and of stages."""

from mutant import Mutant

ERROR = ("test_error.py",)
SELECTION = ("test_natural_selection.py",)
MERGING = ("test_merging.py", "test_mixtures.py")
POLARIZED = ("test_polarized.py",)
STAGES = ("test_stages.py", "test_pictures.py")

QUALITY = [
    Mutant(
        "children lie too close",
        "longest, 3.0 * distance * scales.exp()",
        "longest, distance * scales.exp()",
        ERROR,
    ),
    Mutant(
        "what is pruned makes no room",
        "config.target(step, self.n_start) - n_stay, 0)",
        "config.target(step, self.n_start) - len(gaussians), 0)",
        ERROR,
    ),
    Mutant(
        "candidates are pruned ones too", "candidates = stay & (means", "candidates = (means", ERROR
    ),
    Mutant("the budget grows evenly", "* math.sqrt(done))", "* done)", ERROR),
    Mutant(
        "every reset has a recovery",
        "RECOVERIES, RECOVERY_SHARE = 2, 0.2",
        "RECOVERIES, RECOVERY_SHARE = 2, 0.1",
        ERROR,
    ),
    Mutant("selection goes the other way", "self.weight *= 0.8", "self.weight *= 1.1", SELECTION),
    Mutant(
        "steps of opacities stay as long",
        "torch.lerp(self._before, opacities.detach(), gain)",
        "torch.lerp(self._before, opacities.detach(), 1.0)",
        SELECTION,
    ),
    Mutant(
        "survivors are drawn evenly",
        "keep = sample_keep(opacities, kept",
        "keep = sample_keep(torch.ones_like(opacities), kept",
        SELECTION,
    ),
    Mutant(
        "merging forgets the spread",
        "return mass, means, within + spread",
        "return mass, means, within",
        MERGING,
    ),
    Mutant(
        "any neighbour is a partner",
        "(partner[partner.clamp_min(0)] == rows)",
        "(partner[partner.clamp_min(0)] >= 0)",
        MERGING,
    ),
    Mutant(
        "neighbours are never found anew",
        "                if has_neighbours:",
        "                if not has_neighbours:",
        POLARIZED,
    ),
    Mutant("a stage begins late", "if share >= start:", "if share > start:", STAGES),
    Mutant(
        "reduced cameras keep their focal length",
        "K[1] *= height / camera.height\n    return replace(",
        "return replace(",
        STAGES,
    ),
]
