"""Mutants of blocks: the ground, cells, cameras, waves, swaps, merging, the city."""

from mutant import Mutant

PARTITION, MERGE, STATE = ("test_partition.py",), ("test_merge.py",), ("test_state.py",)
SURROUNDINGS = "test_surroundings.py"
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
        "return int(self.fraction(rounds) * self.steps(block) + 0.5)",
        "return rounds * int(self.fraction(1) * self.steps(block) + 0.5)",
        ("test_block_trainer.py",),
    ),
    Mutant(
        "a block moves as far in a step as one piece does",
        '1.0 / share if run.train.adam_rows == "all" else 1.0,',
        "1.0,",
        ("test_live.py",),
    ),
    Mutant(
        "rounds are of equal length",
        "return min(rounds / self.n_rounds, 1.0) ** GROWTH",
        "return min(rounds / self.n_rounds, 1.0)",
        ("test_block_trainer.py",),
    ),
    Mutant(
        "a state of an older generation is read",
        "if generation != self.generation:",
        "if generation > self.generation:",
        STATE,
    ),
    Mutant(
        "the state that has come is anybody's",
        "if coming is not None and coming[0] is state:",
        "if coming is not None:",
        STATE,
    ),
    Mutant(
        "a state comes back without a copy",
        "return Arriving(self, slab.clone(), None)",
        "return Arriving(self, slab, None)",
        STATE,
    ),
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
        "surroundings are left out of the image",
        "records = join(mine, theirs)",
        "records = mine",
        ("test_surrounded.py", SURROUNDINGS),
    ),
    Mutant(
        "frozen Gaussians take the rows of the own",
        "row = n_taken + first + tl.cumsum(has_row, 0) - has_row",
        "row = first + tl.cumsum(has_row, 0) - has_row",
        ("test_surrounded.py",),
    ),
    Mutant(
        "frozen Gaussians beside a box take rows",
        "visible = visible & (mx + extent_x > left) & (mx - extent_x < right)",
        "visible = visible & (mx + extent_x > left)",
        ("test_surrounded.py",),
    ),
    Mutant(
        "ids of the frozen begin at 0",
        "0 if behind is None else behind.n_gaussians, N if n_ids is None else n_ids,",
        "0, N if n_ids is None else n_ids,",
        ("test_surrounded.py",),
    ),
    Mutant(
        "boxes are as narrow as what is reached",
        "low = ((low / TILE).floor() * TILE - MARGIN).clamp_min(0)",
        "low = (low / TILE).floor() * TILE",
        (SURROUNDINGS,),
    ),
    Mutant(
        "outside its box an image has a loss",
        "mask = counts.to(torch.uint8) * 255",
        "mask = torch.full_like(counts, 255, dtype=torch.uint8)",
        (SURROUNDINGS,),
    ),
    Mutant(
        "what methods add weighs as in one piece",
        "gain = n_images * self.term_weight",
        "gain = n_images",
        ("test_live.py",),
    ),
    Mutant(
        "a block's own masks alone are counted",
        'context.out.info["population"] = population',
        "",
        ("test_live.py",),
    ),
    Mutant(
        "a swapped block begins a new epoch",
        "        sampler.load_state_dict(known.sampler)\n",
        "        pass\n",
        ("test_live.py",),
    ),
    Mutant(
        "blocks of a wave see each other's new Gaussians",
        "self._next[block] = BlockState.to_host(state, arena)",
        "self._next[block] = BlockState.to_host(state, arena)\n"
        "        self.seen[block] = public_part(self._next[block].on_host())",
        ("test_block_trainer.py",),
    ),
    Mutant(
        "a stopped wave's results are kept",
        "self.stop_requested = True\n            self.store.forget()\n",
        "self.stop_requested = True\n            self.store.commit(shares, self.team.ranks)\n",
        ("test_block_trainer.py",),
    ),
    Mutant(
        "intervals of densification stay as long",
        'changes["densification_interval"] = max(round(known.densification_interval * share), 1)',
        'changes["densification_interval"] = known.densification_interval',
        ("test_methods.py",),
    ),
    Mutant(
        "blocks reset opacities",
        'changes["opacity_reset_interval"] = max(scaled.densify_until_iter, 1)',
        "pass",
        ("test_methods.py",),
    ),
    Mutant(
        "borders are as wide as two blocks' reach",
        "2 * REACH - 1, 1, REACH - 1)",
        "4 * REACH - 1, 1, 2 * REACH - 1)",
        ("test_seams.py",),
    ),
    Mutant(
        "surroundings are seen by their centres",
        "n, radius = len(means), REACH * scales.amax(dim=1).exp()",
        "n, radius = len(means), 0.0 * scales.amax(dim=1)",
        (SURROUNDINGS,),
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
