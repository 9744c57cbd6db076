//! The one place for exit codes, and for what is said on the way out.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// How a command ended. The greater of two outcomes of one run is not always the worse: see [`Outcome::and`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for was done, and is right.
    Passed,
    /// A comparison failed.
    Failed,
    /// Something could not be used or checked, so that nothing is known about it. Also the code of a usage error.
    Unusable,
    /// No GPU, where one was asked for.
    NoDevice,
}

impl Outcome {
    /// What stands in the help text.
    pub const HELP: &str = "\
Exit codes:
    0  everything passed
    1  a comparison failed
    2  usage, or input or a peer that cannot be used, or input that is not checked: never a pass
    3  no GPU, where one was asked for";

    /// Both: a failure outweighs what could not be found out, and that outweighs a pass.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let weight = |outcome| match outcome {
            Self::Passed => 0,
            Self::NoDevice => 1,
            Self::Unusable => 2,
            Self::Failed => 3,
        };
        if weight(other) > weight(self) { other } else { self }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        ExitCode::from(match outcome {
            Outcome::Passed => 0,
            Outcome::Failed => 1,
            Outcome::Unusable => 2,
            Outcome::NoDevice => 3,
        })
    }
}

/// One line on standard error.
pub fn complain(problem: impl Display) {
    eprintln!("touchstone: {problem}");
}

/// Writes the result; a reader that has seen enough is no failure.
pub fn print(text: &str) -> Outcome {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(format_args!("standard output: cannot be written: {error}"));
            Outcome::Unusable
        }
        _ => Outcome::Passed,
    }
}
