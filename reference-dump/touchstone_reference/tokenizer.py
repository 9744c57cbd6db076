"""Character-level tokenizers in Hugging Face's `tokenizer.json` format.

One Unicode character is one token, and its id is its rank by code point. A character outside the vocabulary is an error:
the model is WordLevel, whose unknown token is deliberately not in the vocabulary, so that nothing maps silently.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from .errors import BadInput

# Named, because WordLevel must have one; absent from the vocabulary, because encoding an unknown character must fail.
UNKNOWN = "<unk>"


def character_tokenizer(text: str) -> Tokenizer:
    """A tokenizer whose vocabulary is the characters of `text`, sorted by code point."""
    vocabulary = {character: rank for rank, character in enumerate(sorted(set(text)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # Not `.`: it leaves out line ends, and the flag that changes this differs between regex engines.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # without a decoder, tokens are joined with spaces
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of `text`; a character outside the vocabulary is named in the error."""
    known = tokenizer.get_vocab()
    for position, character in enumerate(text):
        if character not in known:
            raise BadInput(f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the {len(known)} of the vocabulary")
    return tokenizer.encode(text).ids
