"""Mutants of neural Gaussians: decoder, anchors, growth, files, baking."""

from mutant import Mutant

DECODER = ("test_decoder.py",)
ANCHORS, FILES, BAKING = ("test_anchors.py",), ("neural/test_files.py",), ("test_baking.py",)
GROWTH, RUNS = ("test_growth.py",), ("neural/test_runs.py",)

NEURAL = [
    Mutant("tanh forgets its slope", "* (1.0 - y * y)", "* (1.0 - y)", DECODER),
    Mutant(
        "a turn's length has a gradient",
        "u = (u - q * tl.sum(q * u, axis=2)[:, :, None]) * length",
        "u = u * length",
        DECODER,
    ),
    Mutant(
        "the bias of the first layer is left out of its sums",
        "tl.store(sums_ptr + place, v_aug, mask=live[:, None] & (a < 4))",
        "tl.store(sums_ptr + place, v_aug, mask=live[:, None] & (a < 3))",
        DECODER,
    ),
    Mutant(
        "sums stay in the unit before",
        "v_w1, v_b1, v_b2 = v_w1 * less, v_b1 * less, v_b2 * less",
        "v_b1, v_b2 = v_b1 * less, v_b2 * less",
        DECODER,
    ),
    Mutant(
        "gradients have no unit", "return tl.maximum(unit, (", "return tl.minimum(unit, (", DECODER
    ),
    Mutant(
        "two nets' sums change places",
        "return tl.reshape(tl.join(x, y), [M, 2 * N])",
        "return tl.reshape(tl.join(y, x), [M, 2 * N])",
        DECODER,
    ),
    Mutant(
        "anchors behind a camera are decoded",
        "    return (z > near) & inside",
        "    return inside",
        DECODER,
    ),
    Mutant(
        "empty places are drawn",
        "opacity[..., 0].tanh().masked_fill(hidden, 0.0)",
        "opacity[..., 0].tanh()",
        DECODER,
    ),
    Mutant(
        "unseen images look like the first",
        "row = torch.where(known, row, appearance.mean(0))",
        "row = torch.where(known, row, row)",
        ANCHORS,
    ),
    Mutant(
        "places that are missing are not told",
        "._replace(missing=(count - room).clamp_min(0))",
        "._replace(missing=torch.zeros_like(count))",
        (*ANCHORS, *RUNS),
    ),
    Mutant(
        "a step that had no room counts",
        "if capacity.holds(counts) and missing <= 0:",
        "if capacity.holds(counts):",
        RUNS,
    ),
    Mutant(
        "offsets that are off come back",
        "self.rows[OFF] = self.rows[OFF] | ~keep.view(-1, self.parts)",
        "self.rows[OFF] = ~keep.view(-1, self.parts)",
        ANCHORS,
    ),
    Mutant(
        "offsets are written point by point",
        'p["offsets"].cpu().transpose(1, 2).reshape(n, 3 * k)',
        'p["offsets"].cpu().reshape(n, 3 * k)',
        FILES,
    ),
    Mutant("thresholds do not rise", "* 2.0**level", "* 1.0**level", GROWTH),
    Mutant("every level keeps half", "> 0.5 ** (level + 1))", "> 0.5)", GROWTH),
    Mutant("anchors are doubled", "    free[theirs] = False\n", "", GROWTH),
    Mutant(
        "new features are sums",
        'features.scatter_reduce_(0, index, p["features"][rows], "amax")',
        'features.scatter_reduce_(0, index, p["features"][rows], "sum")',
        GROWTH,
    ),
    Mutant("views needed are as many as visits", "> 0.5 * enough", "> enough", GROWTH),
    Mutant(
        "what was not judged begins anew",
        "model.rows[name].masked_fill_(visited, 0.0)",
        "model.rows[name].zero_()",
        GROWTH,
    ),
    Mutant("the constant colour is pulled", "ridge[0] = 0.0", "ridge[0] = RIDGE", BAKING),
    Mutant(
        "harmonics that views cannot tell apart are fitted",
        "basis = sh_basis(directions, MAX_DEGREE) * is_told",
        "basis = sh_basis(directions, MAX_DEGREE)",
        BAKING,
    ),
    Mutant("the least eigenvector turns", "eigenvectors[..., -1]", "eigenvectors[..., 0]", BAKING),
]
