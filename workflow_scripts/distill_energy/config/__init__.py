"""What a user may write in ``config.yaml``."""

from .load import load_config, parse_config
from .schema import Config

__all__ = ["Config", "load_config", "parse_config"]
