"""The character tokenizer, as the file that other programs load."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from touchstone_reference.errors import BadInput
from touchstone_reference.tokenizer import character_tokenizer, encode

MODELS = Path(__file__).resolve().parents[2] / "models"
TEXT = "Zwölf\r\n\tBoxkämpfer  jagen … 🜚, e\u0301\u00a0\u2028! '\"\\"


@pytest.fixture
def reloaded(tmp_path: Path) -> Tokenizer:
    character_tokenizer(TEXT).save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("text", [TEXT, "\n", " ", "  ", "\n\n", "\r\n", "e\u0301", "🜚🜚", ""])
def test_text_survives_and_every_character_is_one_token(reloaded: Tokenizer, text: str) -> None:
    """Line ends and spaces are what pre-tokenizers drop and decoders add."""
    ids = reloaded.encode(text).ids
    assert len(ids) == len(text)
    assert reloaded.decode(ids) == text


def test_ids_are_ranks_by_code_point(reloaded: Tokenizer) -> None:
    """The export's rows of the embedding are in this order; any other would scramble the model."""
    characters = sorted(set(TEXT))
    assert [reloaded.token_to_id(c) for c in characters] == list(range(len(characters)))
    assert reloaded.get_vocab_size() == len(characters)


@pytest.mark.parametrize("text", ["Q", "aQ", "é", "<unk>"])
def test_an_unknown_character_is_an_error(reloaded: Tokenizer, text: str) -> None:
    """It must neither vanish nor become another token: the model would answer to a text nobody wrote."""
    with pytest.raises(Exception, match="UNK"):
        reloaded.encode(text)
    with pytest.raises(BadInput, match="is not among the"):
        encode(reloaded, text)


@pytest.mark.parametrize("folder", ["shakespeare-char", "shakespeare-char-small"])
def test_committed_tokenizers_are_what_this_code_writes(folder: str) -> None:
    """A change of the format must reach the committed models."""
    path = MODELS / folder / "tokenizer.json"
    vocabulary = "".join(Tokenizer.from_file(str(path)).get_vocab())
    assert len(vocabulary) == 65
    assert character_tokenizer(vocabulary).to_str(pretty=True) + "\n" == path.read_text(encoding="utf-8")
