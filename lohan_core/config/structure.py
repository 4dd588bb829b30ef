"""Plain values to attrs classes, strictly: every mistake is found, and each names its key and what to write instead."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import StructureHandlerNotFoundError

from lohan_core.config.document import Document, KeyPath, Origin
from lohan_core.errors import ConfigError
from lohan_core.suggest import choose_one_of
from lohan_core.units import Bytes, parse_bytes, parse_number, parse_whole_number

__all__ = ["Problems", "structure", "structure_document", "structure_values"]

T = TypeVar("T")
A = TypeVar("A", bound=attrs.AttrsInstance)


class Problems:
    """Mistakes in one document, collected so that one run of the program shows them all."""

    def __init__(self, document: Document) -> None:
        """Start without any."""
        self._document = document
        self._found: list[str] = []

    def add(self, path: KeyPath, text: str) -> None:
        """Note that ``text`` is wrong with ``path``."""
        where = self._document.origin(path).text
        self._found.append(": ".join(filter(None, [where, ".".join(path), text])))

    def raise_any(self) -> None:
        """Raise a ConfigError with a line per mistake, if there is any."""
        if self._found:
            raise ConfigError("\n".join(self._found))


def structure(
    cls: type[A], values: Mapping[str, Any], path: KeyPath, document: Document, problems: Problems
) -> A | None:
    """Make a ``cls``, an attrs class, of what the document holds at ``path``.

    Returns None after noting in ``problems`` what is wrong.
    """
    attrs.resolve_types(cls)
    fields = {field.alias: field for field in attrs.fields(cls) if field.init}
    unknown = [key for key in values if key not in fields]
    for key in unknown:
        problems.add((*path, str(key)), f"unknown key. {choose_one_of(key, fields)}")
    arguments: dict[str, Any] = {}
    failed = bool(unknown)
    for name, field in fields.items():
        here = (*path, name)
        if name not in values:
            if field.default is attrs.NOTHING:
                problems.add(here, "is missing, and has no default")
                failed = True
        elif (nested := _attrs_class(field.type)) and values[name] is not None:
            if isinstance(values[name], Mapping):
                arguments[name] = structure(nested, values[name], here, document, problems)
            else:
                problems.add(here, f"wants keys with values, got {_shown(values[name])}")
            failed |= arguments.get(name) is None
        else:
            try:
                converter = _converter(document.origin(here).directory)
                arguments[name] = converter.structure(values[name], field.type)
            except (ValueError, TypeError) as error:
                problems.add(here, str(error))
                failed = True
            except StructureHandlerNotFoundError:
                problems.add(here, f"its type {field.type} in {cls.__name__} cannot be read from a config file")
                failed = True
    return None if failed else _construct(cls, arguments, path, problems)


def structure_values(cls: type[A], values: Mapping[str, Any], source: str) -> A:
    """Make a ``cls`` of plain values that never were in a file; ``source`` names them in errors.

    Raises:
        ConfigError: a line per mistake.
    """
    return structure_document(cls, Document(dict(values), Origin(text=source, directory=Path.cwd())))


def structure_document(cls: type[A], document: Document) -> A:
    """Make a ``cls`` of all that a document holds.

    Raises:
        ConfigError: a line per mistake.
    """
    problems = Problems(document)
    made = structure(cls, document.values, (), document, problems)
    problems.raise_any()
    assert made is not None  # noqa: S101  # structure() notes a problem whenever it returns None
    return made


def _attrs_class(type_: Any) -> type[attrs.AttrsInstance] | None:
    """Return the attrs class in ``X`` or ``X | None``."""
    alternatives = get_args(type_) if get_origin(type_) in {Union, types.UnionType} else ()
    candidates: tuple[object, ...] = (type_, *alternatives)
    return next((cls for cls in candidates if isinstance(cls, type) and attrs.has(cls)), None)


def _construct(cls: type[T], arguments: Mapping[str, Any], path: KeyPath, problems: Problems) -> T | None:
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        # attrs' validators begin their text with the attribute's name in quotes: it becomes part of the key. Some give
        # their exceptions further arguments (attribute, value, ...), which are not part of the text.
        text = str(error.args[0]) if error.args else str(error)
        for name in arguments:
            if text.startswith(f"'{name}' "):
                path, text = (*path, name), text.removeprefix(f"'{name}' ")
                break
        problems.add(path, text)
        return None


@cache
def _converter(directory: Path) -> cattrs.Converter:
    """Make a converter for values whose relative paths start from ``directory``."""
    converter = cattrs.Converter(detailed_validation=False)
    scalars: dict[type, Callable[[object], object]] = {
        bool: lambda value: _instance(value, bool, "true or false"),
        int: parse_whole_number,
        float: parse_number,
        str: lambda value: _instance(value, str, "text"),
        Path: lambda value: _path(value, directory),
    }

    def scalar(value: object, cls: type) -> object:
        # cattrs dispatches a StrEnum to the hook of str, whatever is registered for Enum.
        return _choice_of_enum(value, cls) if issubclass(cls, Enum) else scalars[cls](value)

    for cls in (*scalars, Enum):
        converter.register_structure_hook(cls, scalar)
    converter.register_structure_hook(Bytes, lambda value, _: parse_bytes(value))
    converter.register_structure_hook_func(_is_literal, _choice_of_literal)
    converter.register_structure_hook_func(_is_sequence, lambda value, cls: _sequence(value, cls, converter))
    converter.register_structure_hook_func(_is_mapping, lambda value, cls: _mapping(value, cls, converter))
    # One that is a key's own type never comes here; inside a list its mistakes could not be named by key.
    converter.register_structure_hook_func(attrs.has, _not_from_a_file)
    return converter


def _instance(value: object, cls: type[T], wanted: str) -> T:
    if not isinstance(value, cls):
        quotes = "; put it in quotes" if cls is str and value is not None else ""
        raise TypeError(f"wants {wanted}, got {_shown(value)}{quotes}")
    return value


def _path(value: object, directory: Path) -> Path:
    text = _instance(value, str, "a path")
    if not text:
        raise ValueError("wants a path, got nothing")
    return directory / Path(text).expanduser()


def _choice_of_enum(value: object, cls: type[Enum]) -> Enum:
    by_value = {str(member.value): member for member in cls}
    return by_value[_choice(value, list(by_value))]


def _is_literal(cls: Any) -> bool:
    return get_origin(cls) is Literal


def _choice_of_literal(value: object, cls: Any) -> object:
    by_text = {str(choice): choice for choice in get_args(cls)}
    return by_text[_choice(value, list(by_text))]


def _choice(value: object, choices: Sequence[str]) -> str:
    if str(value) not in choices or isinstance(value, bool):
        raise ValueError(f"got {_shown(value)}. {choose_one_of(value, choices)}")
    return str(value)


def _not_from_a_file(_value: object, cls: Any) -> object:
    raise StructureHandlerNotFoundError("", cls)


def _is_mapping(cls: Any) -> bool:
    return (get_origin(cls) or cls) in {dict, Mapping}


def _mapping(value: object, cls: Any, converter: cattrs.Converter) -> object:
    if not isinstance(value, Mapping):
        raise TypeError(f"wants keys with values, got {_shown(value)}")
    key_type, value_type = get_args(cls) or (Any, Any)
    items = {}
    for key, inner in value.items():
        try:
            items[converter.structure(key, key_type)] = converter.structure(inner, value_type)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{key}: {error}") from None
    return items


def _is_sequence(cls: Any) -> bool:
    return (get_origin(cls) or cls) in {tuple, list, set, frozenset, Sequence}


def _sequence(value: object, cls: Any, converter: cattrs.Converter) -> object:
    if isinstance(value, str):
        # tuple("/nvme0") would be ('/', 'n', 'v', ...).
        raise TypeError(f"wants a list, got one text; write [{value}]")
    if not isinstance(value, list | tuple):
        raise TypeError(f"wants a list, got {_shown(value)}")
    origin = get_origin(cls) or cls
    container = origin if origin in {list, set, frozenset} else tuple
    arguments: tuple[Any, ...] = get_args(cls) or (Any, ...)
    fixed = get_origin(cls) is tuple and arguments[-1] is not ...
    if fixed and len(value) != len(arguments):
        raise ValueError(f"wants a list of {len(arguments)}, got {len(value)}: {_shown(value)}")
    types_ = arguments if fixed else (arguments[0],) * len(value)
    items = []
    for index, (item, type_) in enumerate(zip(value, types_, strict=True)):
        try:
            items.append(converter.structure(item, type_))
        except (ValueError, TypeError) as error:
            raise ValueError(f"item {index + 1}: {error}") from None
    return container(items)


def _shown(value: object) -> str:
    return "nothing (null)" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
