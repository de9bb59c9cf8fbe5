"""The service's own engine for batches that are there already: no queue, no deadline, one caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from models import backends, catalog, devices, memory
from models.calibration import Calibration
from models.engine import Engine
from models.errors import GradlessError, NotFiniteError
from models.home import expand_home
from models.items import Item, Output
from models.loading import LoadedModel, load
from models.served import ServingOptions
from models.splitting import SplittingRun
from models.telemetry import Unheard
from models.wanted import NobodyWaitsError


class Runner:
    """One model, loaded and warmed up on construction as the service does it. One thread: the one that makes it."""

    def __init__(
        self,
        options: ServingOptions,
        *,
        batch_size: int,
        check: Callable[[LoadedModel], None] = lambda _model: None,
    ) -> None:
        """The first of `options.models`, in batches of up to `batch_size`. `check` sees the model before the backend is
        made, which may take minutes. Raises StartError, and what `check` does."""
        placement = devices.place(options.device, options.precision, options.backend)
        calibration = Calibration.wanted(options.precision, options.calibration_folder)
        memory.keep_freed()
        wanted = options.models[0]
        spec = catalog.find(wanted) if isinstance(wanted, str) else wanted
        self.model: LoadedModel = load(spec, placement, calibration)
        check(self.model)
        backend = backends.make(
            self.model,
            max_batch_size=batch_size,
            cache_folder=expand_home(options.cache_folder),
            fixed_shape=options.fixed_batch,
        )
        self._engine = Engine(self.model, backend)
        self._engine.prepare_thread()
        self._engine.warm_up()
        self._run = SplittingRun[Item, Output](
            self._engine.run,
            model=self.model.name,
            out_of_memory=memory.ran_out,
            release_memory=partial(memory.give_back, placement.device),
            telemetry=Unheard(),
        )

    def answer(self, pixels: torch.Tensor, *, top_k: int) -> Sequence[Output | GradlessError]:
        """One output an image of (N, 3, crop, crop) uint8; an error in the place of one that cannot be answered.
        `top_k` 0 asks for features alone, and is cut to the number of classes."""
        wanted = min(top_k, self.model.network.classes)
        outputs = self._run([Item(image, wanted) for image in pixels]) if len(pixels) else []
        return [self._checked(output) for output in outputs]

    def close(self) -> None:
        """End what threads the backend has."""
        self._engine.close()

    def _checked(self, output: Output | GradlessError | NobodyWaitsError) -> Output | GradlessError:
        if isinstance(output, NobodyWaitsError):
            raise output  # it comes of items whose callers leave, which these have not
        if isinstance(output, Output) and not output.finite:
            return NotFiniteError(self.model.name)
        return output
