"""`gradless compare --force`, with a runtime that predicts what the test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import typer

from app.commands.compare import compare
from gradless.errors import ComparisonTooLargeError
from gradless.records import Comparison, ComparisonOptions

Run = Callable[..., None]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    new_runtime: Callable[..., Any],
    new_comparison: Callable[[str, ComparisonOptions], Comparison],
) -> Run:
    """Run the command. `what` is predicted to be too much."""

    def run(what: Literal["bytes", "seconds", "forward seconds"], *, force: bool) -> None:
        async def predicted(_model: str | None, options: ComparisonOptions, *_: object) -> Comparison:
            if what == "bytes" or not options.force:
                raise ComparisonTooLargeError(options.batch_size, what, 900.0, 600.0)
            return new_comparison("fake", options)

        monkeypatch.setattr("app.main.start_serving", lambda *_: new_runtime(compare=predicted))
        compare(arms="grad", force=force)

    return run


@pytest.mark.parametrize("what", ["seconds", "forward seconds"])
def test_force_runs_a_comparison_that_is_predicted_to_take_too_long(
    run: Run, capsys: pytest.CaptureFixture[str], what: Any
) -> None:
    with pytest.raises(typer.Exit) as ended:
        run(what, force=False)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("600 s are allowed. --force runs it all the same.")
    run(what, force=True)
    assert "kept" in capsys.readouterr().out


def test_force_does_not_run_a_comparison_without_memory_for_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        run("bytes", force=True)
    assert "--force" not in capsys.readouterr().err
