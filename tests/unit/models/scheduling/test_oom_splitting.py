"""A batch that does not fit into memory runs in pieces; an image that does not fit alone fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from models.interface.errors import OutOfMemoryError
from models.interface.request import AllCancelledError
from models.interface.telemetry import InstanceId, Telemetry
from models.scheduling.oom_splitting import SplittingRun

_INSTANCE = InstanceId("m", "cpu")


class _Counts(Telemetry):
    def __init__(self) -> None:
        self.failures = 0
        self.splits = 0

    def out_of_memory(self, instance: InstanceId) -> None:
        assert instance == _INSTANCE
        self.failures += 1

    def batch_split(self, instance: InstanceId) -> None:
        assert instance == _INSTANCE
        self.splits += 1


class _Device:
    """Has memory for a number of items at once, and none for some items."""

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


def _splitting(device: _Device, counts: _Counts) -> SplittingRun[int, int]:
    return SplittingRun(
        device.run,
        instance=_INSTANCE,
        out_of_memory=lambda error: isinstance(error, MemoryError),
        release_memory=device.release,
        telemetry=counts,
    )


def test_a_batch_that_fits_is_run_whole() -> None:
    device, counts = _Device(room=8), _Counts()
    run = _splitting(device, counts)
    assert run([1, 2, 3]) == [10, 20, 30]
    assert (device.tried, run.safe_size, counts.failures) == ([3], None, 0)


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_answered_in_order() -> None:
    device, counts = _Device(room=3), _Counts()
    run = _splitting(device, counts)
    assert run(list(range(16))) == [item * 10 for item in range(16)]
    # 16 and 8 and 4 do not fit, 2 does.
    assert device.tried == [16, 8, 4, *[2] * 8]
    assert (counts.failures, counts.splits, device.released) == (3, 3, 3)


def test_the_size_that_fits_is_remembered() -> None:
    device = _Device(room=4)
    run = _splitting(device, _Counts())
    run(list(range(8)))
    device.tried.clear()
    run(list(range(6)))
    assert (device.tried, run.safe_size) == ([4, 2], 4)


def test_an_image_that_fits_nowhere_fails_alone() -> None:
    device, counts = _Device(room=8, too_large=frozenset({2})), _Counts()
    results = _splitting(device, counts)([1, 2, 3, 4])
    assert isinstance(results[1], OutOfMemoryError)
    assert [results[0], *results[2:]] == [10, 30, 40]
    assert counts.failures == counts.splits + 1


@pytest.mark.parametrize("room", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_no_result_is_lost_or_doubled(room: int, size: int) -> None:
    run = _splitting(_Device(room), _Counts())
    for _ in range(2):
        assert run(list(range(size))) == [item * 10 for item in range(size)]


def test_other_errors_are_raised() -> None:
    def fail(_: Sequence[int]) -> list[int]:
        raise ValueError("something else")

    make: Callable[[], SplittingRun[int, int]] = lambda: SplittingRun(  # noqa: E731
        fail, instance=_INSTANCE, out_of_memory=lambda _: False, release_memory=lambda: None, telemetry=_Counts()
    )
    with pytest.raises(ValueError, match="something else"):
        make()([1])


def test_a_lower_limit_set_by_another_thread_is_kept() -> None:
    device = _Device(room=1)
    run = _splitting(device, _Counts())
    release = device.release

    def learn_and_release() -> None:
        # As another batch thread would after the same failure.
        if run.safe_size is None:
            run.safe_size = 1
        release()

    run._release_memory = learn_and_release  # noqa: SLF001 - between its failure and what it learns from it
    assert run([1, 2, 3, 4, 5, 6, 7, 8]) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert run.safe_size == 1
    assert device.tried == [8] + [1] * 8


def test_a_cancelled_piece_is_dropped_and_the_others_are_answered() -> None:
    class Leaving(_Device):
        def run(self, items: Sequence[int]) -> list[int]:
            if max(items) <= 2:
                raise AllCancelledError
            return super().run(items)

    run = _splitting(Leaving(room=2), _Counts())
    first, second, *others = run([1, 2, 3, 4])

    assert isinstance(first, AllCancelledError)
    assert isinstance(second, AllCancelledError)
    assert others == [30, 40]
    # For a whole batch the error reaches the batcher, which then does not learn a pace.
    with pytest.raises(AllCancelledError):
        run([1, 2])
