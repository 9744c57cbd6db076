//! Turns tokens into output as they come.

use std::io::{self, StdoutLock, Write as _};
use std::ops::ControlFlow;

use touchstone_runtime::tokenizer::{TextStream, Tokenizer};

use crate::interrupt;

/// Writes the text of one generation, or gathers it.
pub struct Voice<'a> {
    tokenizer: &'a Tokenizer,
    /// Where the text goes at once; none to gather it.
    out: Option<StdoutLock<'static>>,
    stream: TextStream,
    /// Text of the token at hand, or all of it where it is gathered.
    text: String,
    /// Token ids, where the text is gathered.
    tokens: Vec<u32>,
    failed: Option<io::Error>,
    interrupted: bool,
    ends_line: bool,
}

/// What a generation came to.
#[derive(Debug)]
pub struct Spoken {
    /// The text, where it was gathered.
    pub text: String,
    /// The token ids, where they were gathered.
    pub tokens: Vec<u32>,
    /// Whether Ctrl-C ended it.
    pub interrupted: bool,
    /// Whether the output stands at the beginning of a line.
    pub ends_line: bool,
}

impl<'a> Voice<'a> {
    /// A voice that writes to standard output, token by token.
    pub fn streaming(tokenizer: &'a Tokenizer) -> Self {
        Self::new(tokenizer, Some(io::stdout().lock()))
    }

    /// A voice that gathers up to `tokens` tokens.
    pub fn gathering(tokenizer: &'a Tokenizer, tokens: usize) -> Self {
        let mut voice = Self::new(tokenizer, None);
        voice.tokens.reserve(tokens.min(1 << 20));
        voice
    }

    fn new(tokenizer: &'a Tokenizer, out: Option<StdoutLock<'static>>) -> Self {
        let (stream, text, tokens) = (TextStream::default(), String::new(), Vec::new());
        Self { tokenizer, out, stream, text, tokens, failed: None, interrupted: false, ends_line: true }
    }

    /// Takes the next token; breaks where output fails or a signal came.
    pub fn token(&mut self, token: u32) -> ControlFlow<()> {
        self.stream.push(self.tokenizer, token, &mut self.text);
        match self.out {
            Some(_) => self.flush(),
            None => self.tokens.push(token),
        }
        self.interrupted = interrupt::requested();
        if self.interrupted || self.failed.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Ends the text.
    ///
    /// # Errors
    /// The one that writing met.
    pub fn finish(mut self) -> io::Result<Spoken> {
        self.stream.finish(&mut self.text);
        if self.out.is_some() {
            self.flush();
        }
        match self.failed {
            Some(error) => Err(error),
            None => Ok(Spoken {
                text: self.text,
                tokens: self.tokens,
                interrupted: self.interrupted,
                ends_line: self.ends_line,
            }),
        }
    }

    fn flush(&mut self) {
        if let Some(out) = &mut self.out
            && self.failed.is_none()
            && !self.text.is_empty()
        {
            self.failed = out.write_all(self.text.as_bytes()).and_then(|()| out.flush()).err();
            self.ends_line = self.text.ends_with('\n');
            self.text.clear();
        }
    }
}
