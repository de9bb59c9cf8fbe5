"""Run the server's engine on batches, without queue or deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from models import backends
from models.backends import BackendOptions
from models.hardware import memory
from models.inference.engine import Engine, with_fresh_conversion
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import GradlessError, NotFiniteError
from models.interface.request import AllCancelledError, InferenceRequest
from models.interface.telemetry import InstanceId, Telemetry
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, load
from models.scheduling.oom_splitting import SplittingRun
from models.serving.model_instance import ServingOptions


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of a job: the number of files, and path and reason of each one without an answer."""

    files: int
    faults: tuple[tuple[str, str], ...]


class Runner:
    """One model, loaded and warmed up on construction as in the server. For the thread that creates it."""

    def __init__(
        self, options: ServingOptions, *, batch_size: int, check: Callable[[LoadedModel], None] = lambda _model: None
    ) -> None:
        """Load the first of `options.models`, for batches of up to `batch_size`.

        `check` is called with the model before the backend is built, which may take minutes. Raises StartError, and
        what `check` raises.
        """
        placement = backends.place(options.device, options.precision, options.backend)
        calibration = Calibration.for_precision(options.precision, options.calibration_folder)
        memory.retain_freed_pages()
        wanted = options.models[0]
        spec = catalog.find(wanted) if isinstance(wanted, str) else wanted
        self.model: LoadedModel = load(spec, placement, calibration, exact_jpeg=options.exact_jpeg)
        check(self.model)
        self._engine = with_fresh_conversion(self.model, lambda fresh: self._warmed_up(options, batch_size, fresh))
        self._run = SplittingRun[BatchItem, ItemOutput](
            self._engine.run,
            instance=InstanceId(self.model.name, str(placement.device)),
            out_of_memory=memory.ran_out,
            release_memory=partial(memory.trim, placement.device),
            telemetry=Telemetry(),
        )

    def _warmed_up(self, options: ServingOptions, batch_size: int, fresh: bool) -> Engine:  # noqa: FBT001 - of one call
        backend = backends.make(
            self.model,
            BackendOptions(
                max_batch_size=batch_size,
                fixed_shape=options.fixed_batch,
                cache_folder=options.cache_folder,
                fresh=fresh,
            ),
        )
        engine = Engine(self.model, backend)
        try:
            engine.prepare_thread()
            engine.warm_up()
        except BaseException:
            engine.close()
            raise
        return engine

    def answer(self, pixels: torch.Tensor, *, top_k: int) -> Sequence[ItemOutput | GradlessError]:
        """Return one output per image of `pixels`, (N, 3, crop, crop) uint8, or an error in its place.

        `top_k` is limited to the number of classes; 0 returns features alone.
        """
        request = InferenceRequest("classify", top_k=min(top_k, self.model.network.classes))
        outputs = self._run([BatchItem(image, request) for image in pixels]) if len(pixels) else []
        return [self._checked(output) for output in outputs]

    def close(self) -> None:
        """End the backend's threads."""
        self._engine.close()

    def _checked(self, output: ItemOutput | GradlessError | AllCancelledError) -> ItemOutput | GradlessError:
        if isinstance(output, AllCancelledError):
            raise output  # these items are never cancelled
        if isinstance(output, ItemOutput) and not output.finite:
            return NotFiniteError(self.model.name)
        return output
