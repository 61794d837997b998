"""Reading JSON that anyone may have written: bounded in size, and every fault is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from compressor.errors import CompressorError
from compressor.paths import refusal, state

Schema = TypeVar("Schema", bound=BaseModel)

LARGEST = 64 << 20
"""Bytes of JSON that are read; a shard index of a model of a thousand layers has less than one."""


def read_object(
    path: Path,
    fault: type[CompressorError],
    *,
    missing: str | None = None,
    unreadable: type[CompressorError] | None = None,
) -> dict[str, object]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        fault: Error that is raised.
        missing: Message where there is no such file.
        unreadable: Error where the system does not let the file be read; None takes ``fault``.

    Raises:
        CompressorError: ``fault``, if the file is missing, cannot be read, is larger than
            `LARGEST`, is no UTF-8, or holds no JSON object.
    """
    try:
        if not path.is_file() and path.exists():
            raise fault(f"Cannot read {path}: it {state(path)}, expected a file.")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise fault(missing or f"There is no file {path}.") from None
    except PermissionError as error:
        raise (unreadable or fault)(f"Cannot read {path}: {refusal(error)}") from error
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise fault(f"Cannot read {path}: {refusal(error)}") from error
    if len(content) > LARGEST:
        raise fault(f"{path} is larger than {LARGEST:,} bytes, which no such file needs.")
    try:
        parsed = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise fault(f"Cannot read {path}: it is not text in UTF-8.") from error
    except json.JSONDecodeError as error:
        raise fault(f"{path} is not valid JSON: {error.msg} in line {error.lineno}.") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number too long
        raise fault(f"{path} is no JSON that can be read: {error}.") from error
    if not isinstance(parsed, dict):
        raise fault(f"{path} should hold a JSON object, found {type(parsed).__name__}.")
    return parsed


def explained(error: ValidationError) -> str:
    """Return the first problem of a validation, with the key it is at."""
    problem = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "(top)"
    return f"key {key}: {said(problem['msg'])}."


def said(message: str) -> str:
    """Return what a validator of our own says, without what pydantic puts before it."""
    return message.removeprefix("Value error, ")


def validated(
    schema: type[Schema], content: object, where: str, fault: type[CompressorError]
) -> Schema:
    """Return plain data as an instance of ``schema``.

    Raises:
        CompressorError: ``fault``, naming the first key that does not follow the schema.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise fault(f"{where}: {explained(error)}") from error
    except RecursionError as error:
        raise fault(f"{where}: nested too deep.") from error
