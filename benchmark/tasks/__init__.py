"""Tasks: each plans cells, runs one shard, and tallies shard records into rows."""
