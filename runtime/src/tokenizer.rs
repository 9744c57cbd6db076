//! `tokenizer.json`: text to tokens, and tokens back to text as they arrive.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use tokenizers::{DecoderWrapper, ModelWrapper};

use crate::error::{Error, Result};

/// A Hugging Face tokenizer whose tokens stand for the same bytes wherever they occur, so that text can be streamed.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The token that stands for what the vocabulary lacks, if there is one.
    unknown: Option<u32>,
    /// By token id, the bytes it stands for.
    pieces: Vec<Box<[u8]>>,
}

impl Tokenizer {
    /// Reads `path` for a model of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::Read`] where the file cannot be read; [`Error::Invalid`] where it is not a tokenizer, has another vocabulary size, leaves
    /// an id without a token, or decodes in a way that depends on the neighbouring tokens.
    pub fn load(path: &Path, vocab_size: usize) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let invalid =
            |field: &str, problem: String| Error::Invalid { path: path.into(), field: field.into(), problem };
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| invalid("tokenizer", format!("not a Hugging Face tokenizer: {error}")))?;
        let found = inner.get_vocab_size(true);
        if found != vocab_size {
            let problem = format!("has {found} tokens, expected {vocab_size}, the vocab_size of config.json");
            return Err(invalid("vocab", problem));
        }
        let to_bytes = piece_decoder(inner.get_decoder()).map_err(|problem| invalid("decoder", problem))?;
        let pieces = (0..vocab_size as u32)
            .map(|id| match inner.id_to_token(id) {
                Some(token) => Ok(to_bytes(&token).into_boxed_slice()),
                None => Err(invalid(
                    "vocab",
                    format!("has no token of id {id}, expected every id below {vocab_size}"),
                )),
            })
            .collect::<Result<_>>()?;
        let unknown = unknown_token(inner.get_model()).and_then(|token| inner.token_to_id(&token));
        Ok(Self { inner, unknown, pieces })
    }

    /// The tokens of `text`.
    ///
    /// # Errors
    /// [`Error::UnknownCharacter`] for the first character that the vocabulary cannot express. None is ever dropped, or mapped to an
    /// unknown-token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.tokens_of(text);
        // Some models drop what they do not know, so a text that its tokens do not spell is looked at character by character; what a
        // tokenizer's own normaliser changes, it may.
        if tokens.as_ref().is_none_or(|tokens| self.decode(tokens) != text) {
            let mut buffer = [0; 4];
            let mut refused =
                |c: char| self.tokens_of(c.encode_utf8(&mut buffer)).is_none_or(|tokens| tokens.is_empty());
            let mut characters = text.chars().enumerate();
            if let Some((position, character)) = characters.find(|&(_, c)| refused(c)) {
                return Err(Error::UnknownCharacter { character, position });
            }
        }
        let problem = "the tokenizer refuses it as a whole, though not any of its characters".into();
        tokens.ok_or(Error::Argument { name: "the prompt", problem })
    }

    /// The text of `tokens`.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let (mut stream, mut text) = (TextStream::default(), String::new());
        for &token in tokens {
            stream.push(self, token, &mut text);
        }
        stream.finish(&mut text);
        text
    }

    /// The tokens of `text`, or none where the vocabulary lacks something of it.
    fn tokens_of(&self, text: &str) -> Option<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).ok()?;
        let tokens = encoding.get_ids();
        (!tokens.iter().any(|id| Some(*id) == self.unknown)).then(|| tokens.to_vec())
    }
}

/// Turns bytes of tokens into text without ever showing half a character.
#[derive(Debug, Default)]
pub struct TextStream {
    /// The beginning of a character whose end has not arrived: at most three bytes between calls.
    pending: Vec<u8>,
}

impl TextStream {
    /// Adds `token` and appends to `text` every character that is complete now. An id outside the vocabulary, or bytes that can
    /// never become a character, appear as U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) {
        match tokenizer.pieces.get(token as usize) {
            Some(piece) => self.pending.extend_from_slice(piece),
            None => self.pending.push(0xFF), // no UTF-8 text holds this byte
        }
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let rest = &self.pending[done..];
            // The last chunk's tail may be a character under way, which `error_len` tells from a wrong byte by `None`.
            if std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_some()) {
                text.push(char::REPLACEMENT_CHARACTER);
                done += chunk.invalid().len();
            }
        }
        self.pending.drain(..done);
    }

    /// Ends the text: a character that never became complete appears as U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

/// What turns a vocabulary entry into the bytes it stands for.
type PieceDecoder = Box<dyn Fn(&str) -> Vec<u8>>;

fn piece_decoder(decoder: Option<&DecoderWrapper>) -> Result<PieceDecoder, String> {
    match decoder {
        Some(DecoderWrapper::Fuse(_)) => Ok(Box::new(|token| token.as_bytes().to_vec())),
        Some(DecoderWrapper::ByteLevel(_)) => {
            let bytes = byte_level_alphabet();
            Ok(Box::new(move |token| {
                // An added token such as <|endoftext|> is not written in the alphabet and stands for itself.
                let decoded: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
                decoded.unwrap_or_else(|| token.as_bytes().to_vec())
            }))
        }
        Some(_) => {
            Err("is of another type than Fuse and ByteLevel, whose tokens mean the same text everywhere"
                .into())
        }
        None => Err("is missing, expected Fuse or ByteLevel".into()),
    }
}

/// GPT-2's way to write any byte as a visible character: printable bytes as themselves, the others from U+0100 on, in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut substitutes = (0x100..).filter_map(char::from_u32);
    (0..=u8::MAX)
        .map(|byte| {
            let character = if printable(byte) { Some(char::from(byte)) } else { substitutes.next() };
            (character.expect("256 characters follow U+0100"), byte)
        })
        .collect()
}

fn unknown_token(model: &ModelWrapper) -> Option<String> {
    match model {
        ModelWrapper::BPE(model) => model.unk_token.clone(),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        // Unigram names its unknown token by id only, which its own encoder needs; its decoder is refused above.
        ModelWrapper::Unigram(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &tempfile::TempDir, json: &str) -> std::path::PathBuf {
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, json).unwrap();
        path
    }

    /// One character a token, as the trained models have it; é and 語 are not ASCII.
    fn characters(vocab: &[&str]) -> String {
        let vocab: serde_json::Map<_, _> =
            vocab.iter().enumerate().map(|(id, t)| ((*t).to_owned(), id.into())).collect();
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
            "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        })
        .to_string()
    }

    /// A byte-level BPE without merges: every byte of a character is a token of its own.
    fn bytes() -> String {
        let mut alphabet: Vec<(char, u8)> = byte_level_alphabet().into_iter().collect();
        alphabet.sort_by_key(|&(_, byte)| byte);
        let vocab: serde_json::Map<_, _> =
            alphabet.iter().map(|(c, byte)| (c.to_string(), (*byte).into())).collect();
        let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": []}
        })
        .to_string()
    }

    fn load(json: &str, vocab_size: usize) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::load(&write(&dir, json), vocab_size)
    }

    /// Without this, characters outside ASCII or line ends could be lost on the way in or out.
    #[test]
    fn text_comes_back_as_it_went_in() {
        let tokenizer = load(&characters(&["a", "\n", "é", "語", " "]), 5).unwrap();
        let tokens = tokenizer.encode("a\n é語a").unwrap();
        assert_eq!(tokens, [0, 1, 4, 2, 3, 0]);
        assert_eq!(tokenizer.decode(&tokens), "a\n é語a");
        let tokenizer = load(&bytes(), 256).unwrap();
        let text = "é 語\n🦀 \0x";
        assert_eq!(tokenizer.encode(text).unwrap(), text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
    }

    /// Without this, an unknown character could vanish or turn into an unknown-token, and the model would answer another prompt.
    #[test]
    fn an_unknown_character_is_named_with_its_position() {
        for json in [characters(&["é", "b"]), characters(&["é", "<unk>"]).replace("\"b\"", "\"<unk>\"")] {
            match load(&json, 2).unwrap().encode("éé?é") {
                Err(Error::UnknownCharacter { character: '?', position: 2 }) => {}
                other => panic!("expected the unknown character to be named, got {other:?}"),
            }
        }
    }

    /// Without this, a BPE without an unknown-token would drop characters: the crate's own behaviour.
    #[test]
    fn a_dropped_character_is_named_with_its_position() {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "vocab": {"a": 0, "é": 1}, "merges": []}
        });
        match load(&json.to_string(), 2).unwrap().encode("aé?a") {
            Err(Error::UnknownCharacter { character: '?', position: 2 }) => {}
            other => panic!("expected the dropped character to be named, got {other:?}"),
        }
    }

    /// Without this, half a character could reach the terminal, or a wrong byte could hold back all that follows.
    #[test]
    fn a_stream_shows_whole_characters_only() {
        let tokenizer = load(&bytes(), 256).unwrap();
        let shown = |bytes: &[u8]| {
            let mut stream = TextStream::default();
            let mut steps = Vec::new();
            for &byte in bytes {
                let mut text = String::new();
                stream.push(&tokenizer, byte.into(), &mut text);
                steps.push(text);
            }
            let mut rest = String::new();
            stream.finish(&mut rest);
            steps.push(rest);
            steps
        };
        assert_eq!(shown("é🦀x".as_bytes()), ["", "é", "", "", "", "🦀", "x", ""]);
        assert_eq!(shown(b"\xF0\x9Fx"), ["", "", "\u{FFFD}x", ""], "a character broken off by another");
        assert_eq!(
            shown(b"\x80a\xC3"),
            ["\u{FFFD}", "a", "", "\u{FFFD}"],
            "a stray byte, and an end in the middle"
        );
    }

    /// Without this, a tokenizer of another model would run, and ids without text would be printed as nothing.
    #[test]
    fn a_tokenizer_that_does_not_fit_is_refused() {
        let problem = |json: &str, vocab_size| match load(json, vocab_size) {
            Err(Error::Invalid { field, problem, .. }) => format!("{field}: {problem}"),
            other => panic!("expected a refusal, got {:?}", other.map(|_| ())),
        };
        let json = characters(&["a", "b"]);
        assert_eq!(problem(&json, 3), "vocab: has 2 tokens, expected 3, the vocab_size of config.json");
        let hole = json.replace("\"b\":1", "\"b\":2");
        assert_eq!(problem(&hole, 2), "vocab: has no token of id 1, expected every id below 2");
        let no_decoder = json.replace(r#""decoder":{"type":"Fuse"}"#, r#""decoder":null"#);
        assert_eq!(problem(&no_decoder, 2), "decoder: is missing, expected Fuse or ByteLevel");
        assert!(problem("{}", 2).starts_with("tokenizer: not a Hugging Face tokenizer: "));
    }
}
