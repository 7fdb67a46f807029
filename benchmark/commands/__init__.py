"""The commands of `bench`, by what they are about; `benchmark.cli` puts them together."""
