"""When channels go, and how many."""

import pytest

from curlfx.errors import ConfigError
from curlfx.gradual import Schedule


@pytest.mark.parametrize(("interval", "steps"), [(15, 10), (21, 7)])
def test_the_published_schedules(interval: int, steps: int) -> None:
    schedule = Schedule(interval, 150, amount=160)
    assert len(schedule.epochs) == steps
    assert [epoch for epoch in range(1, 201) if schedule.number(epoch)] == list(schedule.epochs)
    assert schedule.epochs[0] == interval
    assert schedule.number(schedule.epochs[-1]) == steps


@pytest.mark.parametrize(
    ("amount", "channels"), [(160, 160), (1, 1), ("5%", 50), (0.05, 50), ("0.01%", 1), (None, None)]
)
def test_amounts(amount: object, channels: int | None) -> None:
    assert Schedule(1, 1, amount, {"macs": "50%"}).channels(1000) == channels


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"interval": 0}, "interval = 0"),
        ({"interval": 2.5}, "interval = 2.5"),
        ({"last": 4}, "last = 4"),
        ({"amount": 0}, "amount = 0"),
        ({"amount": 1.5}, "amount = 1.5"),
        ({"amount": "many"}, "amount = 'many'"),
        ({"amount": "120%"}, "amount = '120%'"),
        ({"amount": None}, "an amount per step, a target"),
        ({"floor": 1.0}, "floor = 1.0"),
        ({"floor": "0.1"}, "floor = '0.1'"),
        ({"target": "50%"}, "target = '50%'"),
        ({"round_to": 0}, "round_to = 0"),
    ],
)
def test_what_means_nothing(fault: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        Schedule(**{"interval": 5, "last": 20, "amount": 3, **fault})


def test_no_target_beside_an_amount() -> None:
    assert Schedule(1, 2, amount=3, target=None) == Schedule(1, 2, amount=3)
