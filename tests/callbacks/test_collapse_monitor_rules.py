import math

import pytest

from anomseg.callbacks.collapse_monitor_rules import CollapseLimits, Findings, Judge

SOUND = {
    "moved": 0.1,
    "variance_ratio": 0.8,
    "distance_ratio": 0.9,
    "skill": 0.7,
    "copied": 0.2,
    "feature_spread": 0.5,
    "feature_rank": 4.0,
    "dead_units": 0.1,
    "weight_std": 1.0,
    "score_spread": 0.5,
    "score_distance": 0.9,
    "loss": 0.1,
}


def told(checks, limits=None, layers=None):
    """Judge checks that differ from a sound one, and give (epoch, word) of each verdict."""
    judge = Judge(limits or CollapseLimits())
    found = []
    for epoch, change in enumerate(checks):
        steps = 100 * (epoch + 1)
        finite = change.pop("finite", True)
        found += judge.judge(epoch, Findings({**SOUND, **change}, steps, layers or {}, finite))
    return [(verdict.epoch, verdict.word) for verdict in found]


@pytest.mark.parametrize(
    ("figure", "value", "word"),
    [
        ("moved", 0.0, "not learning"),
        ("variance_ratio", 1e-6, "constant output"),
        ("score_spread", 0.0, "constant output"),
        ("distance_ratio", 1e-6, "same output for every input"),
        ("score_distance", 0.0, "same output for every input"),
        ("skill", -0.3, "worse than the mean image"),
        ("copied", 0.99, "identity shortcut"),
        ("feature_spread", 1e-11, "bottleneck collapsed"),
        ("feature_rank", 1.0, "bottleneck collapsed"),
        ("dead_units", 1.0, "dead layer"),
        ("weight_std", 0.001, "dead layer"),
    ],
)
def test_judge__gives_each_figure_its_word_at_the_second_check_and_once(figure, value, word):
    beyond = [{figure: value} for _ in range(4)]
    if figure == "skill":  # a skill that falls has diverged besides
        beyond = [{figure: value, "loss": 0.1} for _ in range(4)]
    assert told(beyond) == [(1, word)]
    assert told([{}, {figure: value}, {}, {figure: value}, {}]) == []
    assert told([{figure: math.nan}] * 3) == []


def test_judge__names_the_layer_and_advises():
    judge = Judge(CollapseLimits(patience=1))
    (verdict,) = judge.judge(3, Findings({**SOUND, "dead_units": 1.0}, 100, {"dead_units": "net.up2"}))
    assert (verdict.word, verdict.figure, verdict.value, verdict.limit) == ("dead layer net.up2", "dead_units", 1.0, 0.95)
    assert str(verdict).startswith("dead layer net.up2 (epoch 3: dead_units 1, limit 0.95). Look for ReLU")


def test_judge__hides_what_follows_from_something_worse():
    grey = {"variance_ratio": 0.0, "distance_ratio": 0.0, "skill": -1.0}
    assert told([dict(grey) for _ in range(3)]) == [(1, "constant output")]
    assert told([{**grey, "moved": 0.0, "weight_std": 0.0} for _ in range(3)]) == [(1, "not learning")]


def test_judge__waits_for_a_slow_learner():
    assert told([{"variance_ratio": 1e-5 * 2**i} for i in range(6)]) == []
    assert told([{"variance_ratio": 1e-3, "skill": 0.05 + 0.02 * i} for i in range(5)]) == []
    assert told([{"skill": -(0.5**i)} for i in range(5)]) == []
    assert told([{"variance_ratio": 1e-3, "skill": 0.05} for _ in range(3)]) == [(1, "constant output")]


def test_judge__waits_for_steps_and_for_patience():
    judge = Judge(CollapseLimits(min_steps=50))
    grey = {**SOUND, "variance_ratio": 0.0}
    assert [len(judge.judge(i, Findings(grey, steps))) for i, steps in enumerate((20, 40, 60, 80))] == [0, 0, 0, 1]
    assert told([{"variance_ratio": 0.0}] * 5, CollapseLimits(patience=4)) == [(3, "constant output")]


def test_judge__tells_what_is_not_a_number_at_once():
    assert told([{}, {"finite": False, "loss": math.nan}, {"finite": False}]) == [(1, "diverged at epoch 1")]


def test_judge__names_the_epoch_at_which_a_skill_or_a_loss_began_to_rise():
    skills = [0.2, 0.5, 0.8, 0.1, -0.2]
    assert (4, "diverged at epoch 3") in told([{"skill": one} for one in skills])
    losses = [1.0, 0.1, 0.05, 5.0, 50.0]
    assert told([{"loss": one} for one in losses]) == [(4, "diverged at epoch 3")]


def test_judge__lets_a_loss_jump_that_falls_again_or_is_small_or_has_a_new_term():
    assert told([{"loss": one} for one in (1.0, 0.1, 50.0, 20.0, 5.0, 0.2)]) == []
    assert told([{"loss": one} for one in (1.0, 0.001, 0.02, 0.03, 0.03)]) == []
    assert told([{"loss": one} for one in (1.0, 2.0, 3.0, 3.5)]) == []
    judge = Judge(CollapseLimits())
    found = [
        judge.judge(i, Findings({**SOUND, "loss": one}, 100, {}, True, frozenset(terms)))
        for i, (one, terms) in enumerate(((1.0, ("a",)), (0.1, ("a",)), (50.0, ("a", "b")), (50.0, ("a", "b")), (50.0, ("a", "b"))))
    ]
    assert not any(found)


def test_judge__calls_a_check_sound_where_nothing_is_beyond_its_limit():
    judge = Judge(CollapseLimits())
    sound = []
    for epoch, change in enumerate(({}, {"copied": 0.9}, {}, {"loss": 9.0})):
        judge.judge(epoch, Findings({**SOUND, **change}, 100))
        sound.append(judge.sound)
    assert sound == [True, False, True, False]


def test_limits__refuse_no_patience():
    with pytest.raises(ValueError, match="patience >= 1"):
        CollapseLimits(patience=0)
