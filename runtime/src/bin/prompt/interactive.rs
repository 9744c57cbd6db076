//! A session: prompts line by line, each continued in turn.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::time::Instant;

use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use touchstone_runtime::Error;
use touchstone_runtime::device::Device;
use touchstone_runtime::sampling::Sampling;

use crate::session::{Speaker, nth};
use crate::{Failure, interrupt, report_error, say};

/// Answers prompts until the input ends (Ctrl-D). Ctrl-C ends the continuation under way; at the prompt, it ends the program.
pub fn run<D: Device>(
    speaker: &mut Speaker<'_, '_, D>,
    mut lines: Lines,
    sampling: Sampling,
) -> Result<(), Failure> {
    say(
        "type a text to continue; Ctrl-C stops a continuation, Ctrl-D ends; a line that ends in \\ goes on in the next",
    );
    let mut asked = 0u32;
    while let Some(text) = lines.prompt()? {
        if !text.is_empty() {
            // From the line's end on, not only from the first token on: Ctrl-C may follow at once.
            interrupt::heed(|| answer(speaker, text, sampling, &mut asked))?;
        }
    }
    Ok(())
}

/// Continues one prompt as often as asked for, each time with the next seed.
fn answer<D: Device>(
    speaker: &mut Speaker<'_, '_, D>,
    text: String,
    sampling: Sampling,
    asked: &mut u32,
) -> Result<(), Failure> {
    let began = Instant::now();
    let question = match speaker.question(text) {
        Ok(question) => question,
        // A wrong prompt is no reason to leave.
        Err(error) => {
            report_error(&error);
            return Ok(());
        }
    };
    for sample in 0..speaker.args.num_samples {
        let began = if sample == 0 { began } else { Instant::now() };
        let spoken = speaker.stream(&question, nth(sampling, *asked), began, true)?;
        *asked = asked.wrapping_add(1);
        if spoken.interrupted {
            break;
        }
    }
    Ok(())
}

/// Where the lines come from.
pub enum Lines {
    /// A terminal, with editing and history.
    Editor(Box<DefaultEditor>),
    /// Anything else.
    Plain,
}

impl Lines {
    /// Lines from standard input.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub fn open() -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Plain);
        }
        // Not on standard output: that is for text alone.
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let editor = DefaultEditor::with_config(config).map_err(|error| terminal(&error))?;
        Ok(Self::Editor(Box::new(editor)))
    }

    /// The next prompt, over as many lines as it has; none at the end of the input.
    fn prompt(&mut self) -> Result<Option<String>, Failure> {
        let Some(mut text) = self.line("> ")? else { return Ok(None) };
        while text.ends_with('\\') {
            text.pop();
            text.push('\n');
            match self.line("… ")? {
                Some(line) => text.push_str(&line),
                None => break,
            }
        }
        Ok(Some(text))
    }

    fn line(&mut self, mark: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Editor(editor) => match editor.readline(mark) {
                Ok(line) => Ok(Some(line)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(ReadlineError::Interrupted) => Err(Failure::Interrupted),
                Err(error) => Err(terminal(&error)),
            },
            Self::Plain => {
                let line = io::stdin().lock().lines().next().transpose();
                line.map_err(|source| Error::Read { path: "standard input".into(), source }.into())
            }
        }
    }
}

fn terminal(error: &ReadlineError) -> Failure {
    let source = io::Error::other(error.to_string());
    Error::Read { path: "the terminal".into(), source }.into()
}
