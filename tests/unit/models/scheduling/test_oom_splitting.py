"""A batch that does not fit is answered all the same, in pieces; only an image that fits nowhere fails, alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from models.interface.cancellation import AllCancelledError
from models.interface.errors import OutOfMemoryError
from models.interface.telemetry import NoTelemetry
from models.scheduling.oom_splitting import SplittingRun


class _Heard(NoTelemetry):
    def __init__(self) -> None:
        self.failures = 0
        self.splits = 0

    def out_of_memory(self, model: str) -> None:
        assert model == "m"
        self.failures += 1

    def batch_split(self, model: str) -> None:
        assert model == "m"
        self.splits += 1


class _Device:
    """Has memory for so many items at once, and none at all for some."""

    def __init__(self, room: int, too_large: frozenset[int] = frozenset()) -> None:
        self.room = room
        self.too_large = too_large
        self.tried: list[int] = []
        self.released = 0

    def run(self, items: Sequence[int]) -> list[int]:
        self.tried.append(len(items))
        if len(items) > self.room or self.too_large & set(items):
            raise MemoryError("no room")
        return [item * 10 for item in items]

    def release(self) -> None:
        self.released += 1


def _splitting(device: _Device, heard: _Heard) -> SplittingRun[int, int]:
    return SplittingRun(
        device.run,
        model="m",
        out_of_memory=lambda error: isinstance(error, MemoryError),
        release_memory=device.release,
        telemetry=heard,
    )


def test_a_batch_that_fits_is_run_whole() -> None:
    device, heard = _Device(room=8), _Heard()
    run = _splitting(device, heard)
    assert run([1, 2, 3]) == [10, 20, 30]
    assert (device.tried, run.safe_size, heard.failures) == ([3], None, 0)


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_answered_in_order() -> None:
    device, heard = _Device(room=3), _Heard()
    run = _splitting(device, heard)
    assert run(list(range(16))) == [item * 10 for item in range(16)]
    # 16 and 8 and 4 do not fit, 2 does.
    assert device.tried == [16, 8, 4, *[2] * 8]
    assert (heard.failures, heard.splits, device.released) == (3, 3, 3)


def test_what_fits_is_remembered() -> None:
    device = _Device(room=4)
    run = _splitting(device, _Heard())
    run(list(range(8)))
    device.tried.clear()
    run(list(range(6)))
    assert (device.tried, run.safe_size) == ([4, 2], 4)


def test_an_image_that_fits_nowhere_fails_alone() -> None:
    device, heard = _Device(room=8, too_large=frozenset({2})), _Heard()
    results = _splitting(device, heard)([1, 2, 3, 4])
    assert isinstance(results[1], OutOfMemoryError)
    assert [results[0], *results[2:]] == [10, 30, 40]
    assert heard.failures == heard.splits + 1


@pytest.mark.parametrize("room", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_no_result_is_lost_or_doubled(room: int, size: int) -> None:
    run = _splitting(_Device(room), _Heard())
    for _ in range(2):
        assert run(list(range(size))) == [item * 10 for item in range(size)]


def test_any_other_error_is_not_the_memorys() -> None:
    def fail(_: Sequence[int]) -> list[int]:
        raise ValueError("something else")

    make: Callable[[], SplittingRun[int, int]] = lambda: SplittingRun(  # noqa: E731
        fail, model="m", out_of_memory=lambda _: False, release_memory=lambda: None, telemetry=_Heard()
    )
    with pytest.raises(ValueError, match="something else"):
        make()([1])


def test_what_another_thread_has_learned_meanwhile_is_not_forgotten() -> None:
    device = _Device(room=1)
    run = _splitting(device, _Heard())
    release = device.release

    def learn_and_release() -> None:
        # As the other lane would, in the same emergency.
        if run.safe_size is None:
            run.safe_size = 1
        release()

    run._release_memory = learn_and_release  # noqa: SLF001 - between its failure and what it learns from it
    assert run([1, 2, 3, 4, 5, 6, 7, 8]) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert run.safe_size == 1
    assert device.tried == [8] + [1] * 8


def test_a_piece_that_nobody_waits_for_is_given_up_and_the_others_are_answered() -> None:
    class Leaving(_Device):
        def run(self, items: Sequence[int]) -> list[int]:
            if max(items) <= 2:
                raise AllCancelledError
            return super().run(items)

    run = _splitting(Leaving(room=2), _Heard())
    first, second, *others = run([1, 2, 3, 4])

    assert isinstance(first, AllCancelledError)
    assert isinstance(second, AllCancelledError)
    assert others == [30, 40]
    # Of a whole batch the batcher is told, who then learns nothing from it.
    with pytest.raises(AllCancelledError):
        run([1, 2])
