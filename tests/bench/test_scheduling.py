"""What a shard costs besides its queries."""

from __future__ import annotations

from pathlib import Path

import command
from command import ATTACK, SMALL, WORLD, plugin

bench = command.bench
SHARDS = 1000

# A thousand images, each a shard of its own, and one query for each.
MANY = WORLD.replace("torch.zeros(8,", "torch.zeros(1002,").replace("arange(8)", "arange(1002)")
MANY = MANY.replace("* scale", "* scale / 1002").replace("np.zeros(8,", "np.zeros(1002,")
MANY = MANY.replace(
    "(np.arange(4), np.arange(4, 6), np.arange(6, 8))",
    "(np.arange(1000), np.arange(1000, 1001), np.arange(1001, 1002))",
)


def test_a_thousand_shards_of_trivial_work(bench, benchmark):
    files = plugin("world", MANY), plugin("still", ATTACK.format(name="still", line="pass"))
    plugins = [part for file in files for part in ("--plugin", file)]
    more = ["--images", SHARDS, "--shard", 1, "--queries", 1, "--jobs", 1, "--out", "out"]

    def run():
        return bench("run", "--dataset", "grey", "--attacks", "still", *plugins, *SMALL, *more)

    assert benchmark.pedantic(run, rounds=1).code == 0
    assert len(list(Path("out/shards").iterdir())) == SHARDS
