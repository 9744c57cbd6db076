//! `prompt`: continues a text with a GPT.
#![forbid(unsafe_code)]

mod args;
mod batch;
mod interactive;
mod interrupt;
mod session;
mod stats;
mod voice;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use touchstone_runtime::Error;

use args::Args;

/// Why the program ends before it is done.
enum Failure {
    /// The command line; help and version too, which are no failures.
    Usage(clap::Error),
    /// Anything the runtime reports.
    Runtime(Error),
    /// Standard output cannot be written.
    Output(io::Error),
    /// Ctrl-C.
    Interrupted,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Runtime(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn main() -> ExitCode {
    let result = Args::try_parse().map_err(Failure::Usage).and_then(|args| session::run(&args));
    ExitCode::from(match result {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    })
}

impl Failure {
    /// Tells the user, once, and gives the exit code.
    fn report(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => {
                let _ = error.print();
                0
            }
            Self::Usage(error) => {
                let text = error.render().to_string();
                say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
                2
            }
            Self::Runtime(error) => {
                report_error(error);
                error.exit_code()
            }
            // Whoever read the output has seen enough (`prompt … | head`).
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(error) => {
                say(&format!("cannot write to standard output: {error}"));
                4
            }
            Self::Interrupted => interrupt::EXIT_CODE,
        }
    }
}

/// Prints the error and what caused it as one message.
fn report_error(error: &Error) {
    say(&error.chain());
}

/// A line on standard error; where that is closed, there is nobody to tell.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "prompt: {message}");
}
