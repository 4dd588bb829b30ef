import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import BEGIN, END, byte_tokenizer

from lohan_core.data.chat import tokens_in_spans
from lohan_core.data.encode import Encoder
from lohan_core.data.samples import ChatSample, CompletionSample, TextSample, TokenSample
from lohan_core.errors import DataError

PLAIN = """\
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
MARKED = """\
{%- for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}\
{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
FORGETFUL = """\
{%- for m in messages %}{% if loop.last or m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
THOUGHTS = """\
{%- for m in messages %}<{{ m.role }}>\
{% if m.role == 'assistant' and loop.last %}(thinking){% endif %}{{ m.content | trim }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
TOOLS = "{% for t in tools %}[{{ t.name }}]{% endfor %}" + PLAIN

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hé?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "no"},
]


def encode(tokenizer, *samples, vocabulary_size=None):
    return Encoder(tokenizer, vocabulary_size).encode(samples)


def learned(tokenizer, document):
    return tokenizer.decode([label for label in document.labels.tolist() if label != -100])


def test_every_token_of_a_text_is_learned_and_eos_ends_it():
    tokenizer = byte_tokenizer(bos=True)
    (document,) = encode(tokenizer, TextSample("f:1", "né"))
    assert tokenizer.decode(document.input_ids) == f"{BEGIN}né{END}"
    assert document.labels.tolist() == document.input_ids.tolist()
    assert document.splittable


def test_a_tokenizer_without_bos_gets_none():
    (document,) = encode(byte_tokenizer(), TextSample("f:1", ""))
    assert document.input_ids.tolist() == [0]


def test_of_a_completion_only_the_completion_is_learned():
    tokenizer = byte_tokenizer(bos=True)
    (document,) = encode(tokenizer, CompletionSample("f:1", "Q: ", "A."))
    assert tokenizer.decode(document.input_ids) == f"{BEGIN}Q: A.{END}"
    assert learned(tokenizer, document) == f"A.{END}"
    assert not document.splittable


def test_a_prompt_keeps_its_tokens_where_a_merge_would_reach_over_its_end():
    tokenizer = byte_tokenizer(merges=[("a", "b"), ("b", "b")])
    over, within = encode(tokenizer, CompletionSample("f:1", "xa", "bb"), CompletionSample("f:2", "x", "bb"))
    assert tokenizer.convert_ids_to_tokens(over.input_ids) == ["x", "a", "bb", END]
    assert tokenizer.convert_ids_to_tokens(within.input_ids) == ["x", "bb", END]


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_completion_is_what_follows_its_prompt(prompt, completion):
    tokenizer = _MERGING
    (document,) = encode(tokenizer, CompletionSample("f:1", prompt, completion))
    alone = tokenizer(prompt)["input_ids"]
    assert document.input_ids.tolist()[: len(alone)] == alone
    assert tokenizer.decode(document.input_ids) == f"{tokenizer.decode(alone)}{completion}{END}"
    assert document.labels.tolist() == [-100] * len(alone) + document.input_ids.tolist()[len(alone) :]


_MERGING = byte_tokenizer(bos=True, merges=[("a", "b"), ("ab", "a"), ("Ġ", "a")])


def test_tokens_are_taken_as_they_are():
    (document,) = encode(None, TokenSample("f:1", [5, 6], [-100, 7]))
    assert document.input_ids.tolist() == [5, 6]
    assert document.labels.tolist() == [-100, 7]
    assert not document.splittable


@pytest.mark.parametrize("sample", [TokenSample("f:9", [5, 12], [5, 12]), TokenSample("f:9", [5, 5], [-100, 12])])
def test_a_token_beyond_the_vocabulary_is_refused(sample):
    encode(None, sample, vocabulary_size=13)
    with pytest.raises(DataError, match="f:9: has token 12, but the model's vocabulary ends at 11"):
        encode(None, sample, vocabulary_size=12)


def test_a_text_needs_an_eos_token():
    with pytest.raises(DataError, match="has no EOS token"):
        encode(byte_tokenizer(eos_token=None), TextSample("f:1", "a"))


@pytest.mark.parametrize(("template", "said"), [(PLAIN, "yes\nno\n"), (MARKED, "yesno")])
def test_only_what_the_assistant_says_is_learned(template, said):
    tokenizer = byte_tokenizer(chat_template=template)
    (document,) = encode(tokenizer, ChatSample("f:1", TALK, None))
    whole = "<system>be brief\n<user>hé?\n<assistant>yes\n<user>so\n<assistant>no\n"
    assert tokenizer.decode(document.input_ids) == whole
    assert learned(tokenizer, document) == said


def test_an_assistant_that_speaks_first_is_learned_from_its_first_word():
    tokenizer = byte_tokenizer(chat_template=PLAIN)
    (document,) = encode(tokenizer, ChatSample("f:1", [{"role": "assistant", "content": "hi"}], None))
    assert learned(tokenizer, document) == "<assistant>hi\n"


def test_tools_reach_the_template():
    tokenizer = byte_tokenizer(chat_template=TOOLS)
    (document,) = encode(tokenizer, ChatSample("f:1", TALK[-2:], [{"name": "add"}]))
    assert tokenizer.decode(document.input_ids) == "[add]<user>so\n<assistant>no\n"
    assert learned(tokenizer, document) == "no\n"


def test_a_template_may_render_the_last_turn_in_another_way():
    tokenizer = byte_tokenizer(chat_template=THOUGHTS)
    (document,) = encode(tokenizer, ChatSample("f:1", TALK, None))
    whole = "<system>be brief\n<user>hé?\n<assistant>yes\n<user>so\n<assistant>(thinking)no\n"
    assert tokenizer.decode(document.input_ids) == whole
    assert learned(tokenizer, document) == "yes\n(thinking)no\n"


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=5)), min_size=1, max_size=6)
)
def test_turns_of_any_conversation(turns):
    tokenizer = _CHATTING
    messages = [{"role": role, "content": words} for role, words in turns]
    (document,) = encode(tokenizer, ChatSample("f:1", messages, None))
    said = "".join(
        f"{'' if number else '<assistant>'}{words}\n"
        for number, (role, words) in enumerate(turns)
        if role == "assistant"
    )
    assert learned(tokenizer, document) == said


_CHATTING = byte_tokenizer(chat_template=PLAIN)


def test_turns_that_a_template_leaves_out_later_are_refused():
    tokenizer = byte_tokenizer(chat_template=FORGETFUL)
    encode(tokenizer, ChatSample("f:3", TALK[:3], None))
    with pytest.raises(DataError, match=r"f:3: message 3: .* renders this turn differently .* \{% generation %\}"):
        encode(tokenizer, ChatSample("f:3", TALK, None))


def test_a_template_may_refuse():
    tokenizer = byte_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"f:3: the chat template refuses this conversation: roles must alternate"):
        encode(tokenizer, ChatSample("f:3", TALK, None))


def test_several_templates_need_a_default():
    tokenizer = byte_tokenizer(chat_template={"one": PLAIN, "other": PLAIN})
    with pytest.raises(DataError, match=r"f:3: .*default"):
        encode(tokenizer, ChatSample("f:3", TALK, None))


def test_messages_need_a_template():
    with pytest.raises(DataError, match=r"f:3: .* need a chat template"):
        encode(byte_tokenizer(), ChatSample("f:3", TALK, None))


def test_tokens_in_spans():
    offsets = [(0, 2), (2, 2), (2, 5), (5, 6), (6, 9), (9, 12)]
    assert tokens_in_spans(offsets, [(1, 3), (6, 9)]) == [False, False, True, False, True, False]
    assert tokens_in_spans(offsets, []) == [False] * 6


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))).map(
        lambda steps: [
            (sum(map(sum, steps[:i])) + gap, sum(map(sum, steps[: i + 1]))) for i, (gap, _) in enumerate(steps)
        ]
    ),
    st.lists(st.integers(0, 40), max_size=8, unique=True).map(sorted),
)
def test_tokens_in_spans_agrees_with_the_definition(offsets, edges):
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    expected = [any(a <= first < b for a, b in spans) and end > first for first, end in offsets]
    assert tokens_in_spans(offsets, spans) == expected
