"""One line of a data file: what it may hold, and its checks. Pure: a line of bytes in, a sample out."""

from __future__ import annotations

import json
from typing import Any, ClassVar, TypeAlias

from attrs import frozen

from lohan_core.errors import DataError

__all__ = ["ChatSample", "CompletionSample", "Sample", "TextSample", "TokenSample", "parse_line"]

NO_LOSS = -100
"""The label of a token that is not learned: what PyTorch's cross entropy ignores by default."""

MAX_TOKEN_ID = 2**31 - 1
"""Token ids are kept as int32."""


@frozen
class TextSample:
    """``{"text": ...}``: every token is learned."""

    kind: ClassVar[str] = "text"
    needs_tokenizer: ClassVar[bool] = True
    where: str
    text: str


@frozen
class CompletionSample:
    """``{"prompt": ..., "completion": ...}``: the completion is learned."""

    kind: ClassVar[str] = "prompt/completion"
    needs_tokenizer: ClassVar[bool] = True
    where: str
    prompt: str
    completion: str


@frozen
class ChatSample:
    """``{"messages": [...]}``, with ``tools`` if the chat template takes them: the assistant's turns are learned."""

    kind: ClassVar[str] = "messages"
    needs_tokenizer: ClassVar[bool] = True
    where: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None


@frozen
class TokenSample:
    """``{"input_ids": [...]}``: every token is learned, or those whose ``labels`` are not -100."""

    kind: ClassVar[str] = "input_ids"
    needs_tokenizer: ClassVar[bool] = False
    where: str
    input_ids: list[int]
    labels: list[int]


Sample: TypeAlias = TextSample | CompletionSample | ChatSample | TokenSample

_KINDS = {"text": "text", "prompt": "prompt", "completion": "prompt", "messages": "messages", "input_ids": "input_ids"}
_WANTED = '"text", "prompt" and "completion", "messages", or "input_ids"'


def parse_line(line: bytes, where: str) -> Sample:
    """Read one line of a data file.

    Args:
        line: one JSON object in UTF-8. Keys that no kind of sample has are left alone: they are the user's notes.
        where: file and line number, the beginning of every error.

    Raises:
        DataError: the line is not a JSON object, is of no kind or of two, or a value has the wrong type.
    """
    record = _load(line, where)
    kinds = {kind for key, kind in _KINDS.items() if key in record}
    if not kinds:
        raise DataError(f"{where}: has none of {_WANTED} (found: {_names(record)})")
    if len(kinds) > 1:
        both = _names({key: None for key in _KINDS if key in record})
        raise DataError(f"{where}: is of more than one kind ({both}); want one of {_WANTED}")
    match kinds.pop():
        case "text":
            return TextSample(where, _text(record, "text", where))
        case "prompt":
            return CompletionSample(where, _text(record, "prompt", where), _text(record, "completion", where))
        case "messages":
            return _chat(record, where)
        case _:
            return _tokens(record, where)


def _load(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: is not JSON: {error.msg} at column {error.colno}; want one object per line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8: {error.reason} at byte {error.start}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: is not JSON that can be read: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: is a JSON {_type(record)}; want one object per line, with {_WANTED}")
    return record


def _text(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise DataError(f'{where}: has no "{key}" (found: {_names(record)})')
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" is a JSON {_type(value)}, want a string')
    _check_unicode(value, key, where)
    return value


def _check_unicode(value: str, key: str, where: str) -> None:
    # JSON can escape half of a surrogate pair, which no tokenizer can encode.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'{where}: "{key}" holds half of a surrogate pair at character {error.start}') from None


def _chat(record: dict[str, Any], where: str) -> ChatSample:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where}: "messages" must be a list of at least one message')
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f'{where}: message {number} must be an object with a "role"')
        if not message.keys() & {"content", "tool_calls"}:
            raise DataError(f'{where}: message {number} has no "content" (found: {_names(message)})')
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise DataError(f'{where}: message {number}: "content" is a JSON {_type(content)}, want a string')
        if isinstance(content, str):
            _check_unicode(content, "content", f"{where}: message {number}")
    tools = record.get("tools")
    if not isinstance(tools, list | None):
        raise DataError(f'{where}: "tools" is a JSON {_type(tools)}, want a list')
    return ChatSample(where, messages, tools)


def _tokens(record: dict[str, Any], where: str) -> TokenSample:
    input_ids = _integers(record, "input_ids", where, lowest=0)
    if record.get("labels") is None:
        return TokenSample(where, input_ids, input_ids)
    labels = _integers(record, "labels", where, lowest=NO_LOSS)
    if len(labels) != len(input_ids):
        raise DataError(f'{where}: {len(input_ids)} "input_ids" but {len(labels)} "labels"; want as many')
    for position, label in enumerate(labels):
        if NO_LOSS < label < 0:
            raise DataError(f'{where}: "labels" holds {label} at position {position}; want a token id or {NO_LOSS}')
    return TokenSample(where, input_ids, labels)


def _integers(record: dict[str, Any], key: str, where: str, *, lowest: int) -> list[int]:
    values = record[key]
    if not isinstance(values, list):
        raise DataError(f'{where}: "{key}" is a JSON {_type(values)}, want a list of integers')
    for position, value in enumerate(values):
        if type(value) is not int or not lowest <= value <= MAX_TOKEN_ID:
            raise DataError(f'{where}: "{key}" holds {value!r} at position {position}; want a token id')
    return values


def _names(record: dict[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in record) or "no keys"


def _type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
