//! How long a user waits for the first byte: the prompt program's start, its model and its first token.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use touchstone_runtime::device::DeviceChoice;

use super::Stop;
use super::args::Measure;
use super::row::Row;

/// Starts the `prompt` program beside this one again and again, once untimed: that may fill the kernel cache.
///
/// # Errors
/// [`crate::exit::Outcome::Unusable`] where it is not there or does not answer.
pub fn cold_start(model: &Path, device: DeviceChoice, dtype: &str, repeats: usize) -> Result<Row, Stop> {
    let program = std::env::current_exe()
        .map_err(|error| Stop::unusable(format!("the folder of this program: {error}")))?
        .with_file_name(format!("prompt{}", std::env::consts::EXE_SUFFIX));
    let start = || {
        let mut command = Command::new(&program);
        command.arg("--model").arg(model).args(["--device", &device.to_string(), "--dtype", dtype]);
        command.args(["--max-new-tokens", "1", "--greedy", "\n"]);
        first_byte(&mut command)
            .map_err(|problem| Stop::unusable(format!("cold-start: {}: {problem}", program.display())))
    };
    timed(repeats, start)
}

/// The same of a program that does nothing else: the peer.
///
/// # Errors
/// As above.
pub fn empty_program(program: &Path, repeats: usize) -> Result<Row, Stop> {
    let start = || {
        first_byte(&mut Command::new(program))
            .map_err(|problem| Stop::unusable(format!("cold-start: {}: {problem}", program.display())))
    };
    let row = timed(repeats, start)?;
    Ok(Row { system: "an empty CUDA program".to_owned(), ..row })
}

fn timed(repeats: usize, start: impl Fn() -> Result<Duration, Stop>) -> Result<Row, Stop> {
    start()?;
    let times = (0..repeats).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    Ok(Row::new(Measure::ColdStart, "prompt", "us to the first byte", &times, 1))
}

/// From the start of a process to its first byte on standard output.
fn first_byte(command: &mut Command) -> Result<Duration, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut byte = [0];
    let read = child.stdout.take().map_or(Ok(0), |mut stdout| {
        let read = stdout.read(&mut byte);
        // Whatever follows, the program may end in peace.
        let rest = std::io::copy(&mut stdout, &mut std::io::sink());
        read.and_then(|count| rest.map(|_| count))
    });
    let elapsed = began.elapsed();
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match read {
        Ok(1) if output.status.success() => Ok(elapsed),
        _ => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
    }
}
