"""Read YAML as DVC does."""

import re
from typing import Any

import yaml


class _Loader(yaml.CSafeLoader):
    """A loader that reads 1e-05, which DVC writes, as a number (YAML 1.2). PyYAML reads it as text (YAML 1.1)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """Parse a YAML text as DVC does.

    Raises:
        yaml.YAMLError: the text is not YAML.
        ValueError: the text holds an impossible date.
    """
    return _Loader(text).get_single_data()
