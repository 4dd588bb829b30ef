"""Conversations: rendered by the tokenizer's chat template, and which of the tokens the assistant said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from lohan_core.data.samples import ChatSample
from lohan_core.data.tokenizer import Tokenizer
from lohan_core.errors import DataError

__all__ = ["encode_chat", "tokens_in_spans"]

_PLACEHOLDER = "PLACEHOLDER0OF0THE0ASSISTANTS0WORDS"
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chat(tokenizer: Tokenizer, sample: ChatSample) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and for each whether it is the assistant's.

    A template that marks the assistant's words with ``{% generation %}`` is taken at its word. Else a turn reaches from
    the end of the generation prompt to the end of the turn, end-of-turn marks included: what the model will have to
    say itself.

    Raises:
        DataError: the tokenizer has no chat template, the template refuses the conversation, or it is unmarked and
            renders turns so that they cannot be told apart.
    """
    if not tokenizer.chat_template:
        raise DataError(f'{sample.where}: "messages" need a chat template, which the model\'s tokenizer does not have')
    if not tokenizer.is_fast:
        raise DataError(f'{sample.where}: "messages" need a fast tokenizer (one with a tokenizer.json)')
    if _MARKED.search(_template(tokenizer, sample)):
        encoded = _apply(tokenizer, sample, sample.messages, tokenize=True, return_assistant_tokens_mask=True)
        return list(encoded["input_ids"]), [bool(said) for said in encoded["assistant_masks"]]
    whole = _apply(tokenizer, sample, sample.messages)
    spans = _assistant_spans(tokenizer, sample, whole)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), tokens_in_spans(encoded["offset_mapping"], spans)


def tokens_in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token (its first character and the one after its last), whether it begins inside one of the spans.

    Both ascend. A token of no characters, which some tokenizers insert, belongs to no span.
    """
    inside = []
    remaining = iter(spans)
    span = next(remaining, None)
    for first, end in offsets:
        while span is not None and span[1] <= first:
            span = next(remaining, None)
        inside.append(span is not None and span[0] <= first < end)
    return inside


def _assistant_spans(tokenizer: Tokenizer, sample: ChatSample, whole: str) -> list[tuple[int, int]]:
    return [
        _span(tokenizer, sample, whole, number)
        for number, message in enumerate(sample.messages)
        if message["role"] == "assistant"
    ]


def _span(tokenizer: Tokenizer, sample: ChatSample, whole: str, number: int) -> tuple[int, int]:
    """Characters of ``whole`` that message ``number`` adds.

    The turn begins where the generation prompt of the conversation so far ends. Its end cannot be found likewise:
    templates may render a last turn otherwise than an earlier one (Qwen3 keeps only the last one's thoughts). So the
    words are replaced by a placeholder: what follows it when the conversation ends there ends the turn.
    """
    messages, until = sample.messages, number + 1
    placeholder = {**messages[number], "content": _PLACEHOLDER}
    # Templates may refuse to render nothing; then the assistant speaks first, from the very beginning.
    asked = _apply(tokenizer, sample, messages[:number], add_generation_prompt=True) if number else ""
    _, found, end = _apply(tokenizer, sample, [*messages[:number], placeholder]).partition(_PLACEHOLDER)
    _, found_too, rest = _apply(tokenizer, sample, [*messages[:number], placeholder, *messages[until:]]).partition(
        _PLACEHOLDER
    )
    stop = len(whole) - len(rest) + len(end)
    understood = found and found_too and whole.startswith(asked) and whole.endswith(rest) and rest.startswith(end)
    if not understood or stop < len(asked):
        raise DataError(
            f"{sample.where}: message {number + 1}: the chat template renders this turn differently when others "
            "follow, so its tokens cannot be found; mark the assistant's words in the template with "
            "{% generation %} … {% endgeneration %}"
        )
    return len(asked), stop


def _template(tokenizer: Tokenizer, sample: ChatSample) -> str:
    try:
        return str(tokenizer.get_chat_template(tools=sample.tools))
    except ValueError as error:  # several templates, none of which is the default
        raise DataError(f"{sample.where}: {str(error).splitlines()[0]}") from error


def _apply(tokenizer: Tokenizer, sample: ChatSample, messages: list[dict[str, Any]], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, tools=sample.tools, **{"tokenize": False, **options})
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{sample.where}: the chat template refuses this conversation: {reason[0]}") from error
