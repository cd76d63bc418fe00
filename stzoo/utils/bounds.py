"""Bounds of settings: values beyond them are mistakes for any hardware, file or model."""

import math
from typing import Any

from pydantic import field_validator

MAX_THREADS = 1024
MAX_NUMBER = 10**12  # bound of whole numbers without a bound of their own


def check_plausible(value: Any) -> Any:
    """Returns the value if it and everything nested in it is within the bounds.

    Raises:
        ValueError: If a text contains a NUL character, a number is not finite, or a whole number is beyond
            `MAX_NUMBER`.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text must not contain a NUL character")
    elif isinstance(value, dict):
        for one in (*value.keys(), *value.values()):
            check_plausible(one)
    elif isinstance(value, list | tuple):
        for one in value:
            check_plausible(one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f"a whole number must be at most {MAX_NUMBER:,}")
    return value


plausible = field_validator("*", mode="before")(check_plausible)  # to be assigned in a settings class
