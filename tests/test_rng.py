"""Random streams: reproducible, one per image, equal in law to what they claim to be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmark import philox
from benchmark.rng import RowRng, seed_from

SEEDS = [seed_from("test", row) for row in range(6)]
NAMES = ("attack", 0, "square", {"p": 0.05, "loss": "margin"}, 17)
LITERAL = 232081720090287428601869143660871207525
DRAWS = {
    "integers": lambda rng, rows: rng.integers(rows, 1000, (3, 5)),
    "signs": lambda rng, rows: rng.signs(rows, (2, 4)),
    "uniform": lambda rng, rows: rng.uniform(rows, (7,)),
    "normal": lambda rng, rows: rng.normal(rows, (2, 3)),
    "cube": lambda rng, rows: rng.cube(rows, (3,)),
    "long": lambda rng, rows: rng.integers(rows, 10, (600,)),
}
SUBSETS = st.lists(
    st.tuples(st.sampled_from(sorted(DRAWS)), st.lists(st.integers(0, 5), max_size=8)),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(SUBSETS)
def test_what_a_row_draws_depends_on_its_own_draws_alone(calls):
    together, alone = RowRng(SEEDS), [RowRng([seed]) for seed in SEEDS]
    for kind, rows in calls:
        drawn = DRAWS[kind](together, torch.tensor(rows, dtype=torch.int64))
        assert len(drawn) == len(rows)
        for row, values in zip(rows, drawn, strict=True):
            assert torch.equal(values, DRAWS[kind](alone[row], torch.tensor([0]))[0])


@pytest.mark.parametrize("count", [1, 2, 3, 17, 768, 3071, 3072])
def test_a_normal_does_not_depend_on_how_many_are_computed_with_it(count):
    together = RowRng(SEEDS).normal(torch.arange(6), (count,))
    for row in range(6):
        assert torch.equal(together[row], RowRng(SEEDS).normal(torch.tensor([row]), (count,))[0])


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_equal_seeds_draw_equally_and_streams_and_draws_differ(kind):
    rows = torch.arange(6)
    first, second = RowRng(SEEDS), RowRng(SEEDS)
    draws = [
        torch.cat([DRAWS[kind](rng, rows).flatten(1) for _ in range(8)], 1)
        for rng in (first, second)
    ]
    assert torch.equal(*draws)
    assert len(torch.unique(draws[0], dim=0)) == 6  # rows
    again = torch.cat([DRAWS[kind](first, rows).flatten(1) for _ in range(8)], 1)
    assert not (again == draws[0]).all(1).any()  # later draws


def test_a_draw_longer_than_a_block_is_like_any_other():
    rows = torch.tensor([4, 1])
    long, short = RowRng(SEEDS), RowRng(SEEDS)
    drawn = long.integers(rows, 2**31, (1300,))
    assert drawn.shape == (2, 1300) and len(drawn.unique()) == 2600
    parts = [short.integers(rows, 2**31, (512,)) for _ in range(3)]
    assert torch.equal(drawn[:, :1024], torch.cat(parts, 1)[:, :1024])


def test_a_row_named_several_times_draws_a_normal_for_each_in_order():
    once, several = RowRng(SEEDS), RowRng(SEEDS)
    drawn = several.normal(torch.tensor([3, 0, 3, 3]), (4,))
    singles = [once.normal(torch.tensor([row]), (4,))[0] for row in (3, 0, 3, 3)]
    assert torch.equal(drawn, torch.stack(singles))
    assert len(torch.unique(drawn, dim=0)) == 4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**31), st.integers(0, 2**128 - 1))
def test_integers_lie_below_their_end(high, seed):
    drawn = RowRng([seed]).integers(torch.tensor([0]), high, (50,))
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0 and int(drawn.max()) < high


@pytest.mark.parametrize("high", [2, 3, 10, 257])
def test_integers_are_uniform(high):
    drawn = RowRng(SEEDS).integers(torch.arange(6), high, (6000,))
    for row in drawn:
        assert stats.chisquare(torch.bincount(row, minlength=high).numpy()).pvalue > 1e-3


def test_each_entry_of_a_tensor_of_ends_is_respected():
    ends = torch.tensor([[1], [7], [2**31]])
    drawn = RowRng(SEEDS).integers(torch.tensor([0, 2, 4]), ends, (500,))
    assert drawn[0].unique().tolist() == [0]
    assert drawn[1].unique().tolist() == list(range(7))
    assert 2**30 < int(drawn[2].max()) < 2**31


def test_signs_and_uniforms_have_their_law():
    signs = RowRng(SEEDS).signs(torch.arange(6), (4000,))
    assert sorted(signs.unique().tolist()) == [-1.0, 1.0] and abs(float(signs.mean())) < 0.03
    uniform = RowRng(SEEDS).uniform(torch.arange(6), (4000,))
    assert float(uniform.min()) >= 0.0 and float(uniform.max()) < 1.0
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3


def check_normal(drawn):
    values = drawn.flatten().double().cpu().numpy()
    assert values.dtype == np.float64 and np.isfinite(values).all()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.std() - 1) < 4 / np.sqrt(2 * values.size)
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / values.size)
    rows = drawn.flatten(1).double().cpu().numpy()
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 5 / np.sqrt(rows.shape[1])
    assert abs((rows[:, 1:] * rows[:, :-1]).mean()) < 4 / np.sqrt(values.size)  # neighbours


def test_normals_have_their_moments():
    drawn = RowRng(SEEDS).normal(torch.arange(6), (5000,))
    assert drawn.dtype == torch.float32
    check_normal(drawn)


def test_a_seed_is_equal_in_another_process_and_to_the_number_of_today():
    code = f"from benchmark.rng import seed_from; print(seed_from(*{NAMES!r}))"
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    )
    assert int(there.stdout) == seed_from(*NAMES) == LITERAL


def test_every_name_changes_the_seed_and_the_order_of_keys_does_not():
    others = [
        ("verify", *NAMES[1:]),
        ("attack", 1, *NAMES[2:]),
        (*NAMES[:2], "nes", *NAMES[3:]),
        (*NAMES[:3], {"p": 0.06, "loss": "margin"}, 17),
        (*NAMES[:4], 18),
        NAMES[:4],
        (*NAMES[:4], "17"),
    ]
    seeds = {seed_from(*names) for names in (NAMES, *others)}
    assert len(seeds) == 8 and max(seeds) < 2**128
    assert seed_from(*NAMES[:3], {"loss": "margin", "p": 0.05}, 17) == seed_from(*NAMES)


def test_streams_of_seeds_that_differ_in_one_half_differ_where_that_half_is_used():
    a, b, c = RowRng([5 + (9 << 64)]), RowRng([6 + (9 << 64)]), RowRng([5 + (8 << 64)])
    row = torch.tensor([0])
    assert not torch.equal(a.integers(row, 2**31, (4,)), b.integers(row, 2**31, (4,)))
    assert not torch.equal(a.normal(row, (4,)), c.normal(row, (4,)))


def test_the_global_random_states_are_neither_read_nor_written():
    def draw():
        rng = RowRng(SEEDS)
        return torch.cat([DRAWS[kind](rng, torch.arange(6)).flatten() for kind in DRAWS])

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the state that must not matter
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = draw()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(draw(), first)


ONES = 0xFFFFFFFF
KNOWN = [  # Random123, kat_vectors, philox4x32 10
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox.philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert [int(word) for word in words] == expected


KEYS = torch.tensor([[1, 2], [3, 2], [1, 4], [ONES, ONES], [0, 0]])


def test_philox_normals_have_their_moments_and_depend_on_key_and_draw_alone():
    draws = torch.tensor([0, 0, 0, 5, ONES])
    drawn = philox.normals(KEYS, draws, 5001)
    assert drawn.shape == (5, 5001) and drawn.dtype == torch.float32
    check_normal(drawn)
    order = torch.tensor([3, 0])
    assert torch.equal(philox.normals(KEYS[order], draws[order], 10), drawn[order, :10])
    check_normal(torch.stack([philox.normals(KEYS[:1], draws[:1] + n, 999)[0] for n in range(9)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_integers_are_those_of_the_cpu_and_normals_are_islands():
    here, there, alone = RowRng(SEEDS), RowRng(SEEDS, "cuda"), RowRng(SEEDS[3:4], "cuda")
    rows = torch.tensor([3, 0, 5])
    for kind in ("integers", "signs", "uniform"):
        assert torch.equal(DRAWS[kind](there, rows.cuda()).cpu(), DRAWS[kind](here, rows))
    drawn = there.normal(torch.tensor([3, 0, 3], device="cuda"), (5000,))
    zero = torch.tensor([0], device="cuda")
    assert torch.equal(drawn[0], alone.normal(zero, (5000,))[0])
    assert torch.equal(drawn[2], alone.normal(zero, (5000,))[0])
    check_normal(drawn)
    keys, numbers = there._keys[[3, 0, 3]].cpu(), torch.tensor([0, 0, 1])
    torch.testing.assert_close(
        drawn.cpu(), philox.normals(keys, numbers, 5000), atol=1e-5, rtol=1e-5
    )
