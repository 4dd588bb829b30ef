import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.data.samples import ChatSample, CompletionSample, TextSample, TokenSample, parse_line
from lohan_core.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["text", "prompt", "completion", "messages", "input_ids", "labels", "tools", "id"])


def parse(record):
    return parse_line(json.dumps(record).encode(), "f:1")


def test_the_four_kinds():
    assert parse({"text": "a", "id": 7}) == TextSample("f:1", "a")
    assert parse({"prompt": "a", "completion": "b"}) == CompletionSample("f:1", "a", "b")
    messages = [{"role": "user", "content": "a"}]
    assert parse({"messages": messages}) == ChatSample("f:1", messages, None)
    assert parse({"messages": messages, "tools": []}) == ChatSample("f:1", messages, [])
    assert parse({"input_ids": [1, 2]}) == TokenSample("f:1", [1, 2], [1, 2])
    assert parse({"input_ids": [1, 2], "labels": [-100, 2]}) == TokenSample("f:1", [1, 2], [-100, 2])


def test_a_byte_order_mark_is_no_mistake():
    assert parse_line(b'\xef\xbb\xbf{"text": "a"}', "f:1") == TextSample("f:1", "a")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "is not JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "\xff"}', "is not UTF-8: invalid start byte at byte 10"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'["a"]', "is a JSON array; want one object per line"),
        (b'{"txt": "a"}', 'has none of "text"'),
        (b"{}", "found: no keys"),
        (b'{"text": "a", "prompt": "b"}', 'is of more than one kind ("text", "prompt")'),
        (b'{"text": 1}', '"text" is a JSON number, want a string'),
        (b'{"text": null}', '"text" is a JSON null, want a string'),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "a"}', 'has no "completion"'),
        (b'{"completion": "a"}', 'has no "prompt"'),
        (b'{"prompt": "a", "completion": ["b"]}', '"completion" is a JSON array, want a string'),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": "hello"}', "at least one message"),
        (b'{"messages": [{"content": "a"}]}', 'message 1 must be an object with a "role"'),
        (
            b'{"messages": [{"role": "user", "contents": "a"}]}',
            'message 1 has no "content" (found: "role", "contents")',
        ),
        (b'{"text": "a\n', "is not JSON: Unterminated string starting at at column 10"),
        (b'{"messages": [{"role": "user", "content": 1}]}', 'message 1: "content" is a JSON number'),
        (b'{"messages": [{"role": "user", "content": "\\udfff"}]}', "half of a surrogate pair"),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": "b"}', '"tools" is a JSON string, want a list'),
        (b'{"input_ids": 1}', '"input_ids" is a JSON number, want a list of integers'),
        (b'{"input_ids": [1, 2.0]}', '"input_ids" holds 2.0 at position 1'),
        (b'{"input_ids": [true]}', '"input_ids" holds True at position 0'),
        (b'{"input_ids": [-1]}', '"input_ids" holds -1 at position 0'),
        (b'{"input_ids": [2147483648]}', '"input_ids" holds 2147483648 at position 0'),
        (b'{"input_ids": [1, 2], "labels": [1]}', '2 "input_ids" but 1 "labels"'),
        (b'{"input_ids": [1], "labels": [-5]}', '"labels" holds -5 at position 0'),
    ],
)
def test_what_is_wrong_is_said(line, reason):
    with pytest.raises(DataError) as raised:
        parse_line(line, "train.jsonl:17")
    assert str(raised.value).startswith("train.jsonl:17: ")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.dictionaries(KEYS, JSON).map(json.dumps).map(str.encode) | st.binary(max_size=40))
def test_any_line_is_a_sample_or_an_error_that_names_it(line):
    try:
        parsed = parse_line(line, "f:1")
    except DataError as error:
        parsed = error
    assert isinstance(parsed, TextSample | CompletionSample | ChatSample | TokenSample) or str(parsed).startswith(
        "f:1: "
    )
