"""Tiny tokenizers, made on the spot."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

END, BEGIN, PAD = "<|end|>", "<|begin|>", "<|pad|>"


def byte_tokenizer(*, bos=False, merges=(), **options):
    """One token per byte, plus merges: easy to predict. Ids 0, 1, 2 are the special tokens, 3 to 258 the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [END, BEGIN, PAD, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [(BEGIN, 1)])
    tokenizer.add_special_tokens([END, BEGIN, PAD])
    defaults = {"eos_token": END, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**defaults, **options})
