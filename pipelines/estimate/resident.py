"""Whether training's events will lie on the device, and what they take there: see :mod:`pipelines.data.resident`."""

from __future__ import annotations

from pipelines.config import RunConfig
from pipelines.data.resident import fits
from pipelines.estimate.volume import Volume
from pipelines.estimate.work import Work


def resident_bytes(config: RunConfig, volume: Volume, work: Work, room: int) -> int:
    """Bytes of the events that training will hold on a device of ``room`` bytes; 0: batches come from the host.

    Decided as the trainer does when the model has been built: ``loader.resident: on`` is taken at its word, whether
    there is room or not.
    """
    if config.ranks:
        return 0
    free = room - 4 * work.parameters if work.formats.device == "cuda" else None
    wanted = config.loader.resident
    return volume.event_bytes if wanted == "on" or fits(wanted, volume.event_bytes, free) else 0
