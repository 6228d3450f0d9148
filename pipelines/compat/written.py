"""A translated command or file as a checked recipe, whose mistakes are named as the user wrote them."""

from __future__ import annotations

from pipelines.config import RunConfig, build_config
from pipelines.config_files import Layered
from pipelines.errors import ConfigError


def checked_recipe(layers: Layered) -> RunConfig:
    """The recipe; what the schema complains of names the flag, or the file and line, that the value came from.

    Raises:
        ConfigError: see above.
    """
    try:
        return build_config(layers)
    except ConfigError as error:
        origin = layers.origins.get(tuple((error.where or "").split(".")))
        if origin is None:
            raise
        raise ConfigError(error.what, where=origin, fix=error.fix) from error
