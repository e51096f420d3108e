"""What people write, read strictly: TOML files, tables that know their keys, and each mistake as one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from inspectd.errors import ConfigError


class Strict(BaseModel):
    """A table of the file: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth(cls, table: Any) -> Any:
        """Refuses true and false where numbers are meant: pydantic takes them for 1 and 0."""
        for key, value in table.items() if isinstance(table, dict) else ():
            truths = [str(each).lower() for each in _flat(value) if isinstance(each, bool)]
            if truths and key in cls.model_fields and _is_number(cls.model_fields[key].annotation):
                error = PydanticCustomError("value_error", f"expected a number, not {truths[0]}")
                raise ValidationError.from_exception_data(
                    cls.__name__, [{"type": error, "loc": (key,), "input": value}]
                )
        return table


def _flat(value: Any) -> Iterator[Any]:
    """What stands in a list or table, or in those in it; otherwise the value itself."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _flat(each)
    else:
        yield value


def _is_number(annotation: Any) -> bool:
    """Whether a value is meant to be a number, or to hold some, and not to be true or false."""
    kinds = list(_kinds(annotation))
    return (int in kinds or float in kinds) and bool not in kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def one_line(error: ValidationError, table: type[BaseModel] | None = None) -> str:
    """The first mistake of a validation as `key: what is allowed`, and how many there are.

    An unknown key comes before all others: it may be why another one is missing.

    Args:
        table: what was validated, so that an unknown key can be told which ones are known there.
    """
    first, *rest = _in_order(error)
    key = _key(first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if first["type"] == "extra_forbidden":
        message = unknown_key(str(first["loc"][-1]), _keys_at(first["loc"][:-1], table))
    elif first["type"] not in ("missing", "value_error") and not _may_be_secret(first):
        message = f"{message} (got {_short(first['input'])})"
    more = f" (1 of {len(rest) + 1} mistakes)" if rest else ""
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _may_be_secret(mistake: ErrorDetails) -> bool:
    """Whether what was given may hold a camera's login: its address, or a table that was written as text."""
    return mistake["loc"][:1] == ("cameras",) and isinstance(mistake["input"], str | dict | list)


def mistaken_key(error: ValidationError) -> str:
    """The dotted key that `one_line` speaks of; of one that is missing the table, and empty for all of them."""
    first = _in_order(error)[0]
    key = _key(first["loc"])
    return key.rpartition(".")[0] if first["type"] == "missing" else key


def _in_order(error: ValidationError) -> list[ErrorDetails]:
    return sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")


def _key(loc: tuple[str | int, ...]) -> str:
    """The dotted path of a key; pydantic names the chosen kind behind `source`, which is no key of the file."""
    if loc[:1] == ("cameras",) and loc[2:3] == ("source",):
        loc = loc[:3] + loc[4:]
    return ".".join(map(str, loc))


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """What is said of a key that a table does not have.

    >>> unknown_key("threats", ["device", "threads"])
    'unknown key; did you mean threads? allowed: device, threads'
    """
    near = get_close_matches(key, allowed, n=1)
    hint = f"; did you mean {near[0]}? allowed: " if near else "; allowed: "
    return f"unknown key{hint}{', '.join(allowed)}" if allowed else "unknown key"


def _keys_at(loc: tuple[str | int, ...], kind: Any) -> list[str]:
    """The keys of the table that lies at a place within another one (or a dict or union of them) of that kind."""
    if _is_table(kind):
        fields = kind.model_fields
        return _keys_at(loc[1:], fields[str(loc[0])].annotation) if loc else list(fields)
    if get_origin(kind) is dict:
        return _keys_at(loc[1:], get_args(kind)[1])
    tables = [each for each in get_args(kind) if _is_table(each)]
    if len(tables) > 1:  # told apart by their `kind`, which pydantic names
        loc, tables = loc[1:], [each for each in tables if loc[0] in get_args(each.model_fields["kind"].annotation)]
    return _keys_at(loc, tables[0]) if tables else []


def _is_table(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
