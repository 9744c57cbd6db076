//! How long a user waits for the first byte: the prompt program's start, its model and its first token; beside it the smallest CUDA program.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::args::{BenchArgs, Measure};
use super::report::Section;
use super::row::Row;
use super::{Stop, peers, progress};

/// Adds a row for the `prompt` program beside this one and, where peers are asked for on a GPU, one for the smallest CUDA program. They start in
/// turn, and only once this process has closed the device: a context that somebody holds shortens the start of the next one by 0.1 s.
///
/// # Errors
/// [`crate::exit::Outcome::Unusable`] where one is not there or does not answer.
pub fn add(args: &BenchArgs, model: &Path, section: &mut Section) -> Result<(), Stop> {
    let program = std::env::current_exe()
        .map_err(|error| Stop::unusable(format!("the folder of this program: {error}")))?
        .with_file_name(format!("prompt{}", std::env::consts::EXE_SUFFIX));
    let with_peer = args.peers && section.kind == "cuda";
    let empty = with_peer.then(|| peers::empty_program(args)).transpose()?;
    progress(format_args!("{}, {}: {}", section.model, section.dtype, Measure::ColdStart.name()));
    let ours = || {
        let mut command = Command::new(&program);
        command.arg("--model").arg(model).args([
            "--device",
            &args.device.to_string(),
            "--dtype",
            section.dtype,
        ]);
        command.args(["--max-new-tokens", "1", "--greedy", "\n"]);
        timed(&mut command)
    };
    let theirs = || empty.as_ref().map(|program| timed(&mut Command::new(&program.path))).transpose();
    // Once untimed: that may fill the kernel cache.
    ours()?;
    theirs()?;
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for _ in 0..args.repeats.get() {
        our_times.push(ours()?);
        their_times.extend(theirs()?);
    }
    let row = |times: &[Duration]| Row::new(Measure::ColdStart, "prompt", "us to the first byte", times, 1);
    let our_row = row(&our_times);
    let ours = our_row.median;
    section.rows.push(our_row);
    if with_peer {
        let row = row(&their_times);
        let times_ours = Some(row.median / ours);
        section.rows.push(Row { system: "an empty CUDA program".to_owned(), times_ours, ..row });
    }
    Ok(())
}

fn timed(command: &mut Command) -> Result<Duration, Stop> {
    first_byte(command).map_err(|problem| {
        Stop::unusable(format!("cold-start: {}: {problem}", Path::new(command.get_program()).display()))
    })
}

/// From the start of a process to its first byte on standard output; what it does from there to its end is no part of the wait, and not alike:
/// `prompt` gives up its context, which takes half as long as to make one, and the smallest program leaves that to the kernel.
fn first_byte(command: &mut Command) -> Result<Duration, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut byte = [0];
    let mut stdout = child.stdout.take().expect("a pipe was asked for");
    let read = stdout.read(&mut byte);
    let elapsed = began.elapsed();
    // Whatever follows, the program may end in peace.
    let read = read.and_then(|count| std::io::copy(&mut stdout, &mut std::io::sink()).map(|_| count));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match read {
        Ok(1) if output.status.success() => Ok(elapsed),
        _ => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
    }
}
