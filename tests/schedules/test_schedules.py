"""Schedules: the functions that build them, join and repeat, and the 1cycle policy at every small size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifast import (
    Scheduler,
    annealing_cos,
    annealing_exp,
    annealing_linear,
    flat_cosine,
    one_cycle,
    three_phases,
    two_halves,
    warm_restarts,
)
from minifast.schedules import (
    annealing_no,
    annealing_poly,
    constant,
    cosine,
    exponential,
    join,
    linear,
    one_cycle_momentum,
    polynomial,
    repeat,
    step,
    three_phases_momentum,
)
from minifast.schedules.one_cycle import whole_batches

few = settings(max_examples=60, derandomize=True, deadline=None, database=None)
shares = st.floats(0.0, 1.0)
progress = st.floats(0.0, 1.0)


# --- the makers


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.3), [0.3, 0.3, 0.3, 0.3, 0.3]),
        (linear(1.0, 3.0), [1.0, 1.5, 2.0, 2.5, 3.0]),
        (cosine(1.0, 0.0), [1.0, 0.853553390593274, 0.5, 0.146446609406726, 0.0]),
        (exponential(1e-4, 1.0), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (polynomial(1.0, 0.0, 2), [1.0, 0.5625, 0.25, 0.0625, 0.0]),
        (polynomial(0.0, 2.0, 1), [0.0, 0.5, 1.0, 1.5, 2.0]),
        (step(1.0, 0.1, 3), [1.0, 0.1, 0.01, 0.001, 0.001]),
    ],
)
def test_makers(schedule, values) -> None:
    assert [schedule(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(values, abs=1e-15, rel=1e-12)


@pytest.mark.parametrize(
    ("annealing", "half"),
    [
        (annealing_no, 1.0),
        (annealing_linear, 2.0),
        (annealing_cos, 2.0),
        (annealing_exp, math.sqrt(3)),
        (annealing_poly(1), 2.0),
        (annealing_poly(3), 3 - 2 / 8),
    ],
)
def test_annealings_begin_at_the_start_and_end_at_the_end(annealing, half) -> None:
    assert annealing(1.0, 3.0, 0.0) == pytest.approx(1.0)
    assert annealing(1.0, 3.0, 0.5) == pytest.approx(half)
    assert annealing(1.0, 3.0, 1.0) == pytest.approx(1.0 if annealing is annealing_no else 3.0)


SCHEDULES = [
    constant(0.3),
    linear(0.1, 1.0),
    cosine(1.0, 0.1),
    exponential(0.1, 1.0),
    polynomial(1.0, 0.1, 2),
    step(1.0, 0.5, 3),
    join((0.3, linear(0.0, 1.0)), (0.7, cosine(1.0, 0.0))),
    one_cycle(0.05),
    one_cycle(0.05, warmup="cosine", final_div=100),
    one_cycle_momentum(),
    three_phases(0.05),
    three_phases_momentum(),
    two_halves(0.05),
    flat_cosine(0.05),
    warm_restarts(0.05, 3, 2, 1e-3),
    repeat(one_cycle(0.05), 2),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_floats_and_arrays_give_the_same(schedule) -> None:
    ps = np.linspace(0, 1, 41)
    at_once = schedule(ps)
    one_by_one = [schedule(float(p)) for p in ps]
    assert isinstance(at_once, np.ndarray)
    assert at_once.shape == ps.shape
    assert at_once == pytest.approx(one_by_one, rel=1e-14, abs=1e-16)
    assert all(isinstance(value, float) for value in one_by_one)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_arrays_own_numbers_are_taken(schedule) -> None:
    ps = np.linspace(0, 1, 5)
    assert [float(schedule(p)) for p in ps] == pytest.approx([schedule(p) for p in ps.tolist()], rel=1e-14, abs=1e-16)
    assert schedule(0) == pytest.approx(schedule(0.0))  # whole numbers too
    assert schedule(1) == pytest.approx(schedule(1.0), abs=1e-16)


@pytest.mark.parametrize(
    "make",
    [constant, lambda v: linear(v, v / 10), lambda v: cosine(v, v / 10), lambda v: exponential(v, v / 10),
     lambda v: polynomial(v, v / 10, 2), lambda v: step(v, 0.5, 2), one_cycle, three_phases, two_halves, flat_cosine,
     lambda v: warm_restarts(v, 3, 2, v / 10),
     lambda v: one_cycle(v, final_div=1e4, warmup="cosine")],
)  # fmt: skip
def test_values_may_be_arrays_with_one_a_layer_group(make) -> None:
    values = np.array([1e-4, 1e-2, 1.0])
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert make(values)(p) == pytest.approx([make(float(value))(p) for value in values], rel=1e-12, abs=1e-16)


# --- join


def test_join_divides_the_shares_by_their_sum() -> None:
    for scale in (1, 0.1, 7, 1e-6, 1e6):
        f = join((scale, constant(1.0)), (3 * scale, constant(2.0)))
        assert [f(p) for p in (0.0, 0.2499, 0.25, 1.0)] == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("parts", [[0.7, 0.2, 0.1], [1 / 6] * 6, [0.1] * 10])
def test_join_takes_shares_whose_sum_is_not_quite_one(parts) -> None:
    f = join(*((share, constant(float(i))) for i, share in enumerate(parts)))
    assert f(0.0) == 0.0
    assert f(1.0) == len(parts) - 1


def test_join_of_one_is_that_one() -> None:
    assert [join((5, linear(0.0, 1.0)))(p) for p in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]


@pytest.mark.parametrize("zeros", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_join_leaves_out_a_share_of_zero(zeros) -> None:
    f = join(*((share, constant(float(i))) for i, share in enumerate(zeros)))
    there = [float(i) for i, share in enumerate(zeros) if share]
    assert [f(0.0), f(0.4999), f(0.5), f(1.0)] == [there[0], there[0], there[1], there[1]]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 49, 99, 100, 386])
def test_seams_are_exact_where_shares_are_whole_numbers_of_batches(n) -> None:
    for seam in range(1, n):
        f = join((seam, constant(1.0)), (n - seam, constant(2.0)))
        assert f((seam - 1) / n) == 1.0
        assert f(seam / n) == 2.0


def test_join_may_be_joined() -> None:
    inner = join((1, linear(0.0, 1.0)), (1, linear(1.0, 0.0)))
    f = join((1, inner), (1, constant(5.0)))
    assert [f(p) for p in (0.0, 0.125, 0.25, 0.375, 0.5, 1.0)] == [0.0, 0.5, 1.0, 0.5, 5.0, 5.0]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ValueError, "needs at least one positive share"),
        ([0, 0], ValueError, "needs at least one positive share"),
        ([0.5, -0.1], ValueError, "a share of join must be at least 0, got -0.1"),
        ([float("nan"), 1], ValueError, "a share of join must be finite, got nan"),
        ([float("inf"), 1], ValueError, "a share of join must be finite, got inf"),
        (["0.5", 1], TypeError, "a share of join must be a number, got '0.5' of type str"),
        ([None], TypeError, "a share of join must be a number, got None of type NoneType"),
    ],
)
def test_join_refuses_bad_shares(bad, error, message) -> None:
    with pytest.raises(error, match=message):
        join(*((share, constant(1.0)) for share in bad))


# --- one cycle, as numbers


def by_hand(n: int, pct: float = 0.3, lr: float = 1.0, div: float = 25.0, end: float = 0.0) -> list[float]:
    """Learning rates of n batches as the design writes them: a line up, then half a cosine; then where it ends."""
    warm = int(n * pct)
    if warm == 0 and pct > 0 and n > 1:
        warm = 1
    rates = []
    for i in range(n + 1):
        if i < warm:
            rates.append(lr / div + (lr - lr / div) * i / warm)
        elif warm == n:
            rates.append(lr)
        else:
            rates.append(end + (lr - end) * (1 + math.cos(math.pi * (i - warm) / (n - warm))) / 2)
    return rates


def rates_of(n: int, pct: float = 0.3, **options) -> list[float]:
    f = one_cycle(options.pop("lr", 1.0), pct_start=whole_batches(pct, n), **options)
    return [f(i / n) for i in range(n + 1)]


@pytest.mark.parametrize(
    ("n", "table"),
    [
        (1, [1.0, 0.0]),
        (2, [0.04, 1.0, 0.0]),
        (3, [0.04, 1.0, 0.5, 0.0]),
        (4, [0.04, 1.0, 0.75, 0.25, 0.0]),
        (10, [0.04, 0.36, 0.68, 1.0, 0.950484433951210, 0.811744900929367, 0.611260466978157, 0.388739533021843,
              0.188255099070633, 0.049515566048790, 0.0]),
    ],
)  # fmt: skip
def test_one_cycle_at_small_sizes(n, table) -> None:
    assert rates_of(n) == pytest.approx(table, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "warm", "some"),
    [
        (
            99,
            29,
            {0: 0.04, 1: 0.04 + 0.96 / 29, 28: 0.04 + 0.96 * 28 / 29, 29: 1.0, 64: 0.5, 98: 0.000503466729, 99: 0.0},
        ),
        (100, 30, {0: 0.04, 1: 0.072, 15: 0.52, 29: 0.968, 30: 1.0, 65: 0.5, 99: 0.000503466729, 100: 0.0}),
        (386, 115, {0: 0.04, 115: 1.0, 386: 0.0}),
    ],
)
def test_one_cycle_at_larger_sizes(n, warm, some) -> None:
    rates = rates_of(n)
    assert {i: rates[i] for i in some} == pytest.approx(some, abs=1e-9)
    assert rates == pytest.approx(by_hand(n), abs=1e-12)
    assert rates.index(max(rates)) == warm
    assert all(np.diff(rates[: warm + 1]) > 0)
    assert all(np.diff(rates[warm:]) < 0)


def test_one_cycle_momentum_mirrors_the_rate() -> None:
    for n in (1, 2, 3, 10, 99, 100):
        pct = whole_batches(0.3, n)
        warm = round(pct * n)
        f = one_cycle_momentum(pct_start=pct)
        down = [0.95 - 0.1 * i / warm for i in range(warm)]
        back = [0.95 - 0.1 * (1 + math.cos(math.pi * i / (n - warm))) / 2 for i in range(n - warm + 1)]
        assert [f(i / n) for i in range(n + 1)] == pytest.approx(down + back, abs=1e-12)


@pytest.mark.parametrize("pct", [0.0, 0.001, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("warmup", ["linear", "cosine"])
def test_one_cycle_at_every_size_and_share(pct, warmup) -> None:
    for n in range(1, 51):
        share = whole_batches(pct, n)
        lr = one_cycle(0.5, pct_start=share, warmup=warmup)
        mom = one_cycle_momentum(pct_start=share, warmup=warmup)
        rates = [lr(i / n) for i in range(n + 1)]
        moms = [mom(i / n) for i in range(n + 1)]
        assert all(map(math.isfinite, rates + moms))
        assert all(0 <= rate <= 0.5 for rate in rates)
        assert all(0.85 - 1e-15 <= one <= 0.95 + 1e-15 for one in moms)
        peak = round(share * n)
        assert rates[peak] == 0.5, "the peak falls on a batch, exactly"
        assert moms[peak] == 0.85
        assert rates[0] == (0.5 if peak == 0 else pytest.approx(0.02, rel=1e-12))
        assert rates[n] == (0.5 if peak == n else 0.0)
        assert moms[n] == pytest.approx(0.85 if peak == n else 0.95)
        if warmup == "linear":
            assert rates == pytest.approx(by_hand(n, pct, 0.5), abs=1e-12)


def test_a_share_that_is_a_whole_number_of_batches_is_not_rounded_down() -> None:
    for n in range(1, 200):
        for batches in range(1, n):
            assert whole_batches(batches / n, n) == batches / n  # though 29 / 100 * 100 is below 29


@given(st.integers(1, 2000), shares)
@few
def test_whole_batches_is_a_whole_number_of_them_near_the_share(n, pct) -> None:
    batches = whole_batches(pct, n) * n
    assert batches == pytest.approx(round(batches), abs=1e-9)
    assert 0 <= batches <= n
    assert batches <= n * pct + 1e-9 or round(batches) == 1
    assert batches > n * pct - 1
    assert (batches > 0) == (n * pct >= 1 or (pct > 0 and n > 1))


@given(progress, shares, st.floats(1e-6, 10), st.floats(1.0, 1e4))
@few
def test_one_cycle_stays_between_zero_and_its_maximum(p, pct, lr_max, div_factor) -> None:
    assert 0 <= one_cycle(lr_max, div_factor, pct)(p) <= lr_max * (1 + 1e-12)
    assert 0.85 - 1e-12 <= one_cycle_momentum(pct_start=pct)(p) <= 0.95 + 1e-12


def test_cosine_warmup_and_final_div_are_what_fastai_v1_does() -> None:
    n, lr_max = 30, 0.01
    rates = rates_of(n, lr=lr_max, warmup="cosine", final_div=25e4)
    assert rates[0] == pytest.approx(0.0004, rel=1e-12)
    assert rates[9] == 0.01
    assert rates.index(max(rates)) == 9
    assert rates[29] == pytest.approx(5.6e-5, rel=0.005)
    assert rates[30] == pytest.approx(4e-8, rel=1e-12)
    # fastai v1: two Schedulers of annealing_cos, stepped after each batch
    up, down = Scheduler((lr_max / 25, lr_max), 9, annealing_cos), Scheduler((lr_max, lr_max / 25e4), 21, annealing_cos)
    expected = [up.start, *(up.step() for _ in range(9)), *(down.step() for _ in range(21))]
    assert rates == pytest.approx(expected, rel=1e-12)
    moms = one_cycle_momentum(pct_start=0.3, warmup="cosine")
    assert [moms(i / n) for i in (0, 9, 30)] == pytest.approx([0.95, 0.85, 0.95])
    assert moms(9 / n) == 0.85


def test_the_three_forms() -> None:
    lr, mom = three_phases(1.0, div_factor=10, pct_start=0.45), three_phases_momentum(pct_start=0.45)
    ps = (0.0, 0.225, 0.45, 0.675, 0.9, 0.95, 1.0)
    assert [lr(p) for p in ps] == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1, 0.0505, 0.001])
    assert [mom(p) for p in ps] == pytest.approx([0.95, 0.9, 0.85, 0.9, 0.95, 0.95, 0.95])
    halves = two_halves(1.0, div_factor=10, final_div=1000)
    assert [halves(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.1, 0.55, 1.0, 0.5005, 0.001])
    default = three_phases(1.0)
    assert [default(p) for p in (0.0, 0.45, 0.9, 1.0)] == pytest.approx([0.04, 1.0, 0.04, 0.0004])  # max / (25 * 100)
    assert two_halves(1.0)(1.0) == pytest.approx(0.0004)


@pytest.mark.parametrize("pct", [0.0, 0.1, 0.45, 0.5])
def test_three_phases_at_the_ends_of_its_share(pct) -> None:
    lr, mom = three_phases(1.0, pct_start=pct), three_phases_momentum(pct_start=pct)
    values = [lr(p / 100) for p in range(101)]
    assert all(0 < value <= 1 for value in values)
    assert values[-1] == pytest.approx(0.04 if pct == 0.5 else 0.0004)
    assert mom(1.0) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: one_cycle(1.0, pct_start=1.1), ValueError, r"`pct_start` must be at most 1, got 1\.1"),
        (lambda: one_cycle(1.0, pct_start=-0.1), ValueError, r"`pct_start` must be at least 0, got -0\.1"),
        (lambda: one_cycle(1.0, pct_start="0.3"), TypeError, r"`pct_start` must be a number, got '0\.3' of type str"),
        (lambda: one_cycle(1.0, div_factor=0), ValueError, "`div_factor` must be positive, got 0"),
        (lambda: one_cycle(1.0, div_factor=-25), ValueError, "`div_factor` must be positive, got -25"),
        (lambda: one_cycle(1.0, final_div=0), ValueError, "`final_div` must be positive, got 0"),
        (lambda: one_cycle(1.0, warmup="liner"), ValueError, "`warmup` must be one of 'linear', 'cosine', got 'liner'"),
        (lambda: one_cycle_momentum(pct_start=2), ValueError, "`pct_start` must be at most 1, got 2"),
        (lambda: three_phases(1.0, pct_start=0.6), ValueError, r"`pct_start` must be at most 0\.5, got 0\.6"),
        (lambda: three_phases(1.0, div_factor=0), ValueError, "`div_factor` must be positive, got 0"),
        (lambda: three_phases_momentum(pct_start=0.6), ValueError, r"`pct_start` must be at most 0\.5, got 0\.6"),
        (lambda: two_halves(1.0, div_factor=0), ValueError, "`div_factor` must be positive, got 0"),
        (lambda: two_halves(1.0, final_div=-1), ValueError, "`final_div` must be positive, got -1"),
    ],
)
def test_what_is_out_of_range_is_refused_when_the_schedule_is_made(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


# --- the Scheduler of fastai v1


def test_scheduler_steps_as_in_fastai_v1() -> None:
    scheduler = Scheduler((1.0, 0.0), 4)
    assert scheduler.start == 1.0
    assert not scheduler.is_done
    assert [scheduler.step() for _ in range(4)] == [0.75, 0.5, 0.25, 0.0]
    assert scheduler.is_done
    scheduler.restart()
    assert scheduler.step() == 0.75


def test_scheduler_of_one_number_is_constant_and_of_no_iterations_has_one() -> None:
    constant_one = Scheduler(0.3, 3)
    assert (constant_one.end, [constant_one.step() for _ in range(3)]) == (0, [0.3] * 3)
    short = Scheduler((1.0, 2.0), 0, annealing_cos)
    assert (short.n_iter, short.step(), short.is_done) == (1, 2.0, True)
