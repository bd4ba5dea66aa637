"""YAML as DVC reads it."""

import re
from typing import Any

import yaml


class _Loader(yaml.CSafeLoader):
    """Takes 1e-05 for a number, as YAML 1.2 does and DVC writes it; for PyYAML, which reads YAML 1.1, it is text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """What a YAML text holds, read as DVC reads it.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it holds a date that no calendar has.
    """
    return _Loader(text).get_single_data()
