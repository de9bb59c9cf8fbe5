"""Find the neighbours of image files in an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from models.inference.image_job import ItemOutput
from models.offline.reading import Reading, batches
from models.offline.running import Runner
from models.search.index import Neighbour, SearchIndex
from models.serving.model_instance import ServingOptions

_IMAGES_AT_ONCE = 8


def neighbours(
    folder: Path, files: Sequence[str], options: ServingOptions, *, k: int, max_bytes: int
) -> Iterator[tuple[str, list[Neighbour] | str]]:
    """Yield each of `files` with its `k` nearest rows in the index of `folder`, or a sentence that says why not.

    Loads the first model of `options` as the server does. Raises StartError, including SearchIndexError if another
    model made the index's vectors.
    """
    with closing(Runner(options, batch_size=_IMAGES_AT_ONCE)) as runner:
        index = SearchIndex.open(folder)
        index.check_model({runner.model.name: runner.model.fingerprint})
        reading = Reading(runner.model.transform, options.limits, max_bytes)
        for batch in batches(files, reading, batch_size=_IMAGES_AT_ONCE, workers=0):
            outputs = iter(runner.answer(batch.pixels, top_k=0))
            for place, path in enumerate(batch.paths):
                answered = batch.faults[place] if place in batch.faults else next(outputs)
                yield (
                    path,
                    (
                        index.search(answered.features[None], k)[0]
                        if isinstance(answered, ItemOutput)
                        else str(answered)
                    ),
                )
