//! `touchstone`: is this build right (`check`), is this machine ready (`doctor`), and how fast is it (`bench`)?
//!
//! Results go to standard output, everything else to standard error.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod doctor;
mod exit;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    outcome.into()
}
