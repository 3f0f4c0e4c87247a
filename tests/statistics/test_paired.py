"""The interval of a paired difference: Tango's for one answer, and consistent with p."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from ssd_ray.errors import UserError
from ssd_ray.statistics.paired import Discordance, difference_interval, discordance, score
from ssd_ray.statistics.significance import p_value, smallest_detectable_effect, standard_error

Z = 1.959963984540054
SMALL = [(b, c, n) for n in range(1, 31) for b in range(n + 1) for c in range(n + 1 - b)]
LARGE = [(b, c, n) for n in (131, 164, 500) for b in range(41) for c in range(41)]


def pair(better, worse, problems):
    return Discordance(better=better / problems, worse=worse / problems, size=problems)


def interval(better, worse, problems, confidence=0.95):
    return difference_interval(pair(better, worse, problems), confidence=confidence)


def binary(better, worse, problems):
    """Return values of two arms, one answer per problem."""
    first, second = np.zeros(problems), np.zeros(problems)
    first[:better] = 1
    second[better : better + worse] = 1
    return first, second


@pytest.mark.parametrize(
    ("better", "worse", "problems", "low", "high"),
    [
        (0, 0, 32, -10.72, 10.72),
        (0, 0, 9, -29.91, 29.91),
        (0, 0, 164, -2.29, 2.29),
        (1, 0, 32, -7.93, 15.74),
        (3, 1, 164, -1.74, 4.71),
        (10, 4, 131, -1.15, 10.94),
        (12, 9, 164, -3.90, 7.72),
    ],
)
def test_one_answer_a_problem_gives_tangos_interval(better, worse, problems, low, high):
    result = difference_interval(
        discordance(*binary(better, worse, problems), answers=1), confidence=0.95
    )
    assert [100 * result.low, 100 * result.high] == pytest.approx([low, high], abs=0.005)
    assert result.estimate == pytest.approx((better - worse) / problems)


def likelihood_score(better, worse, problems, difference):
    """Tango's statistic, with the constrained likelihood maximum found by search."""
    rest = problems - better - worse
    low, high = max(0.0, -difference), (1 - difference) / 2

    def loss(worse_share):
        terms = (
            (better, worse_share + difference),
            (worse, worse_share),
            (rest, 1 - 2 * worse_share - difference),
        )
        return -sum(count * math.log(max(share, 1e-300)) for count, share in terms if count)

    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = problems * (2 * best + difference * (1 - difference))
    return (better - worse - problems * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    "counts",
    [(0, 0, 5), (1, 0, 32), (2, 3, 9), (3, 1, 164), (5, 0, 12), (10, 4, 131), (30, 41, 80)],
)
def test_the_score_is_that_of_the_constrained_likelihood(counts):
    estimate = (counts[0] - counts[1]) / counts[2]
    for difference in np.linspace(-0.98, 0.98, 41):
        if abs(difference - estimate) > 0.01:
            assert score(pair(*counts), difference) == pytest.approx(
                likelihood_score(*counts, difference), rel=1e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize("counts", SMALL[:: len(SMALL) // 150])
def test_brute_force_inversion_gives_the_same_interval(counts):
    grid = np.linspace(-1, 1, 20_001)
    kept = grid[[abs(score(pair(*counts), float(difference))) <= Z for difference in grid]]
    result = interval(*counts)
    assert [result.low, result.high] == pytest.approx([kept.min(), kept.max()], abs=1.01e-4)


def quartic_roots(better, worse, problems):
    """Return the roots of a quartic, limits among them (Yang, Sun and Hardin 2013)."""
    half = np.polynomial.Polynomial
    delta = half([0, 1])
    scaled = (half([better - worse]) - problems * delta) ** 2 / Z**2 / problems
    q = (scaled - delta * (1 - delta)) / 2
    b = half([-better - worse, 2 * problems - better + worse])
    return (2 * problems * q**2 + b * q - worse * delta * (1 - delta)).roots()


@pytest.mark.parametrize("counts", [case for case in SMALL[::97] if case[0] + case[1] > 0])
def test_the_closed_solution_gives_the_same_interval(counts):
    result, roots = interval(*counts), quartic_roots(*counts)
    for limit in (result.low, result.high):
        assert abs(limit) == 1 or np.abs(roots - limit).min() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_interval_p_value_and_detectable_effect_never_contradict(confidence):
    for counts in itertools.chain(SMALL, LARGE):
        result = interval(*counts, confidence)
        p = p_value(pair(*counts))
        effect = smallest_detectable_effect(
            standard_error(result, confidence=confidence), confidence=confidence
        )
        assert (result.low > 0 or result.high < 0) == (p < 1 - confidence), counts
        assert effect == 1 or effect > max(
            result.high - result.estimate, result.estimate - result.low
        ), counts
        if effect < 1 and abs(result.estimate) >= effect:
            assert p < 1 - confidence, counts


def test_the_p_value_is_mcnemars():
    for better, worse in ((4, 0), (10, 4), (12, 9), (1, 0)):
        z = abs(better - worse) / math.sqrt(better + worse)
        assert p_value(pair(better, worse, 99)) == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert p_value(pair(0, 0, 32)) == 1.0


@pytest.mark.parametrize("problems", [32, 64, 164, 500])
def test_where_nothing_differs_the_detectable_effect_is_found(problems):
    effect = smallest_detectable_effect(
        standard_error(interval(0, 0, problems), confidence=0.95), confidence=0.95
    )
    rejected = sum(
        binom.pmf(better, problems, effect)
        for better in range(problems + 1)
        if p_value(pair(better, 0, problems)) < 0.05
    )
    assert 0.72 < rejected < 0.88


counts = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n))
    )
)


@given(counts, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_exchanging_the_arms_mirrors_the_interval(case, confidence):
    better, worse, problems = case
    one, other = (
        interval(better, worse, problems, confidence),
        interval(worse, better, problems, confidence),
    )
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert p_value(pair(better, worse, problems)) == p_value(pair(worse, better, problems))


@given(counts)
def test_limits_stay_between_minus_1_and_1_around_the_estimate(case):
    result = interval(*case)
    assert -1 <= result.low <= result.estimate + 1e-12
    assert result.estimate - 1e-12 <= result.high <= 1
    assert result.low < result.high


@given(counts)
def test_another_problem_solved_better_moves_both_limits_up(case):
    better, worse, problems = case
    if better + worse < problems:
        result, more = interval(better, worse, problems), interval(better + 1, worse, problems)
        assert more.low > result.low - 1e-12
        assert more.high > result.high - 1e-12


@given(counts, st.integers(2, 9))
def test_more_problems_of_the_same_kind_narrow_the_interval(case, times):
    result, more = interval(*case), interval(*(times * count for count in case))
    assert result.low - 1e-12 <= more.low
    assert more.high <= result.high + 1e-12
    assert more.high - more.low < result.high - result.low


@given(counts)
def test_a_lower_confidence_narrows_the_interval(case):
    result, narrow = interval(*case), interval(*case, 0.8)
    assert result.low - 1e-12 <= narrow.low
    assert narrow.high <= result.high + 1e-12


shares = st.integers(1, 10).flatmap(
    lambda answers: st.tuples(
        st.just(answers),
        st.lists(st.tuples(*[st.integers(0, answers)] * 2), min_size=1, max_size=60),
    )
)


@given(shares)
def test_intervals_of_several_answers_are_no_wider_than_tango(case):
    answers, rows = case
    first, second = np.array(rows).T / answers
    result = discordance(first, second, answers=answers)
    limits, p = difference_interval(result, confidence=0.95), p_value(result)
    assert (limits.low > 0 or limits.high < 0) == (p < 0.05)
    assert -1 <= limits.low < limits.high <= 1
    single = difference_interval(
        Discordance(better=result.better, worse=result.worse, size=first.size), confidence=0.95
    )
    assert limits.high - limits.low <= single.high - single.low + 1e-9
    assert len(rows) <= result.size <= answers * len(rows) * (1 + 1e-9)


@given(shares)
def test_exchanging_arms_of_several_answers_mirrors_the_interval(case):
    answers, rows = case
    first, second = np.array(rows).T / answers
    one, other = (
        discordance(*arms, answers=answers) for arms in ((first, second), (second, first))
    )
    assert one.size == pytest.approx(other.size)
    result, mirrored = (
        difference_interval(one, confidence=0.95),
        difference_interval(other, confidence=0.95),
    )
    assert (result.low, result.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)


def test_answers_that_all_agree_count_as_one():
    for better, worse, problems in ((0, 0, 32), (3, 1, 164), (10, 4, 131)):
        first, second = binary(better, worse, problems)
        several, single = (
            difference_interval(discordance(first, second, answers=answers), confidence=0.95)
            for answers in (10, 1)
        )
        assert (several.low, several.high) == pytest.approx((single.low, single.high))


def test_answers_that_do_not_agree_count_as_single_ones():
    rng = np.random.default_rng(0)
    first, second = rng.binomial(10, 0.5, (2, 300)) / 10
    result = discordance(first, second, answers=10)
    assert result.size == pytest.approx(3000, rel=0.25)
    alike = discordance(np.full(300, 0.6), np.full(300, 0.5), answers=10)
    assert alike.size == pytest.approx(3000, rel=0.02), (
        "never more than the answers that were drawn"
    )


def test_equal_answers_still_leave_an_interval():
    for problems, value in itertools.product((1, 2, 10, 30, 500), (0.0, 0.4, 1.0)):
        same = np.full(problems, value)
        result = difference_interval(discordance(same, same, answers=10), confidence=0.95)
        assert result.low < -1 / problems / 2 or result.low == -1
        assert result.high == -result.low


def test_pairing_removes_what_the_problems_have_in_common():
    rng = np.random.default_rng(2)
    hardness = rng.random(200)
    first, second = rng.binomial(10, hardness, (2, 200)) / 10
    paired = difference_interval(discordance(first, second, answers=10), confidence=0.95)
    apart = difference_interval(
        discordance(first, rng.permutation(second), answers=10), confidence=0.95
    )
    assert 1.5 * (paired.high - paired.low) < apart.high - apart.low


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([math.nan], [0.5]), ([0.5], [1.5]), ([-0.1], [0.5]), ([0.5, 0.5], [0.5])],
)
def test_values_without_a_difference_are_the_users_mistake(first, second):
    with pytest.raises(UserError):
        discordance(np.array(first), np.array(second), answers=1)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, 2])
def test_an_impossible_confidence_is_the_users_mistake(confidence):
    with pytest.raises(UserError, match="must be between 0 and 1"):
        interval(1, 0, 9, confidence)
