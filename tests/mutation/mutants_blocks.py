"""Mutants of blocks: the ground, cells, cameras, waves, swaps, merging, the city."""

from mutant import Mutant

PARTITION, MERGE, STATE = ("test_partition.py",), ("test_merge.py",), ("test_state.py",)
WAVES, CITY = ("test_waves.py",), ("test_city.py",)

BLOCKS = [
    Mutant(
        "the noise of a survey's up axes is up",
        "if length > UP_LENGTH and not lies_in_plane:",
        "if not lies_in_plane:",
        PARTITION,
    ),
    Mutant(
        "a drone that never turns has its up axis on the ground",
        "lies_in_plane = is_flat and abs(up @ normal) < IN_PLANE * length",
        "lies_in_plane = False",
        PARTITION,
    ),
    Mutant(
        "a value on a cut belongs to the lower side",
        "is_high = ground[rows, node.axis] >= node.at",
        "is_high = ground[rows, node.axis] > node.at",
        PARTITION,
    ),
    Mutant(
        "far points fall off the grid",
        "index = torch.minimum(index.clamp_min(0), dims - 1)",
        "index = index.clamp_min(0)",
        PARTITION,
    ),
    Mutant(
        "a camera below every share has no block",
        "belongs[torch.arange(len(share)), best] = True",
        "",
        PARTITION,
    ),
    Mutant(
        "a moved scene has the same partition",
        "digest.update(scene.points.float().cpu().contiguous().numpy().tobytes())",
        "",
        PARTITION,
    ),
    Mutant(
        "blocks that meet in a corner are trained at once",
        "(low <= other_high).all() and (other_low <= high).all()",
        "(low < other_high).all() and (other_low < high).all()",
        WAVES,
    ),
    Mutant(
        "a rank waits while another has two free blocks",
        "key=lambda r: (len(blocks[r]) > 0, loads[r], len(blocks[r]))",
        "key=lambda r: loads[r]",
        WAVES,
    ),
    Mutant(
        "rounding is lost from round to round",
        "return [until(n, round_index + 1) - until(n, round_index) for n in n_cameras]",
        "return [until(n, 1) for n in n_cameras]",
        WAVES,
    ),
    Mutant(
        "a state of an older generation is read",
        "if generation != self.generation:",
        "if generation > self.generation:",
        STATE,
    ),
    Mutant("a state comes back without a copy", "copied = slab.clone()", "copied = slab", STATE),
    Mutant(
        "a merged model is in the order of blocks",
        "order = ids.argsort()\n    order = order[kept",
        "order = torch.arange(len(ids))\n    order = order[kept",
        MERGE,
    ),
    Mutant(
        "the blocks of another partition are merged",
        "if manifest.partition != partition.hash or ",
        "if ",
        MERGE,
    ),
    Mutant(
        "files of an older generation stay",
        "path.name not in names:\n            path.unlink(missing_ok=True)",
        "path.name not in names:\n            pass",
        MERGE,
    ),
    Mutant(
        "surroundings get gradients",
        "torch.cat([value, getattr(frozen, name).detach()])",
        "torch.cat([value, getattr(frozen, name)])",
        ("test_surroundings.py",),
    ),
    Mutant(
        "surroundings are seen by their centres",
        "radius = REACH * scales.amax(dim=1).exp()",
        "radius = 0.0 * scales.amax(dim=1)",
        ("test_surroundings.py",),
    ),
    Mutant(
        "rays stop at the first cell",
        "rows = rows[~hit & inside & (leaves.gather(1, axis)[:, 0] < last[rows])]",
        "rows = rows[:0]",
        CITY,
    ),
    Mutant(
        "there are no shadows",
        "lit[rows] *= cast(district, start, sun.expand(len(rows), 3)).which == SKY",
        "",
        CITY,
    ),
]
