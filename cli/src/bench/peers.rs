//! Others on the same work, in the same run: PyTorch by the scripts of `benches/peers`, which check themselves before they time, and the
//! smallest CUDA program, which stands beside the program's start.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Map, Value};
use tempfile::TempDir;
use touchstone_functional_tests::find_root;

use super::args::{BenchArgs, Measure};
use super::measure::SAMPLING;
use super::report::Section;
use super::row::{OURS, Row};
use super::subject::{Origin, Subject};
use super::{Stop, progress};

/// Below the repository's root.
const FOLDER: &str = "benches/peers";

/// What a script prints.
#[derive(Deserialize)]
struct Answer {
    rows: Vec<Peer>,
    /// Of a large matrix product: prefill's limit.
    #[serde(default)]
    matrix_flop_per_s: Option<f64>,
    /// Versions, device and settings.
    #[serde(flatten)]
    environment: Map<String, Value>,
}

/// A row of it.
#[derive(Deserialize)]
struct Peer {
    mode: String,
    #[serde(default)]
    formulation: Option<String>,
    /// Of a prompt.
    #[serde(default)]
    tokens: Option<usize>,
    #[serde(alias = "us_per_token_median")]
    us_median: f64,
    #[serde(alias = "us_per_token_p90")]
    us_p90: f64,
    repeats: usize,
}

/// Puts every peer's rows behind ours, for the measurements that have peers.
///
/// # Errors
/// [`crate::exit::Outcome::Unusable`] where a peer cannot run, or ends with an error.
pub fn add(args: &BenchArgs, subject: &Subject, section: &mut Section) -> Result<(), Stop> {
    if args.wants(Measure::Decode) {
        decode(args, subject, section)?;
    }
    if args.wants(Measure::Prefill) {
        prefill(args, subject, section)?;
    }
    Ok(())
}

fn decode(args: &BenchArgs, subject: &Subject, section: &mut Section) -> Result<(), Stop> {
    let default_modes = if section.kind == "cuda" { "eager,compiled" } else { "eager" };
    let modes = args.peer_modes.as_deref().unwrap_or(default_modes);
    let new_tokens = section.new_tokens.to_string();
    let settings = ["--dtypes", section.dtype, "--modes", modes, "--new-tokens", &new_tokens];
    let answer = ask(args, subject, section, "decode.py", &settings)?;
    behind_ours(section, Measure::Decode, &answer.rows, |_, _| true);
    section.peers = Some(answer.environment);
    Ok(())
}

fn prefill(args: &BenchArgs, subject: &Subject, section: &mut Section) -> Result<(), Stop> {
    let ours = section.rows.iter().filter(|row| row.measure == Measure::Prefill);
    let lengths: Vec<String> = ours.filter_map(|row| row.prompt).map(|length| length.to_string()).collect();
    let settings = ["--dtype", section.dtype, "--lengths", &lengths.join(",")];
    let answer = ask(args, subject, section, "prefill.py", &settings)?;
    behind_ours(section, Measure::Prefill, &answer.rows, |row, peer| row.prompt == peer.tokens);
    for row in section.rows.iter_mut().filter(|row| row.measure == Measure::Prefill) {
        row.matrix_share =
            row.gflop_per_s.zip(answer.matrix_flop_per_s).map(|(rate, most)| rate * 1e9 / most);
    }
    section.peers.get_or_insert(answer.environment);
    Ok(())
}

/// A program in a folder of its own, which goes when this is dropped.
pub struct Built {
    /// The executable.
    pub path: PathBuf,
    _folder: TempDir,
}

/// The smallest CUDA program, built by nvcc for this run.
///
/// # Errors
/// [`crate::exit::Outcome::Unusable`] where it cannot be built.
pub fn empty_program(args: &BenchArgs) -> Result<Built, Stop> {
    let source = path("context.cu")?;
    let folder = tempfile::tempdir().map_err(|error| Stop::unusable(format!("--peers: {error}")))?;
    let program = folder.path().join("context");
    progress(format_args!("building {}", source.display()));
    let stop = |problem: String| {
        Stop::unusable(format!("--peers: {} {FOLDER}/context.cu: {problem}", args.nvcc.display()))
    };
    let output = Command::new(&args.nvcc).arg("-o").arg(&program).arg(&source).output();
    let output = output.map_err(|error| stop(format!("cannot be started: {error}")))?;
    if !output.status.success() {
        return Err(stop(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(Built { path: program, _folder: folder })
}

fn path(script: &str) -> Result<PathBuf, Stop> {
    Ok(find_root().map_err(|error| Stop::unusable(format!("--peers: {error}")))?.join(FOLDER).join(script))
}

/// Runs a script with the settings of our own measurement.
fn ask(
    args: &BenchArgs,
    subject: &Subject,
    section: &Section,
    name: &str,
    settings: &[&str],
) -> Result<Answer, Stop> {
    let script = path(name)?;
    let mut command = Command::new(&args.python);
    command.arg(&script).stderr(Stdio::inherit());
    match &subject.origin {
        Origin::Model(dir) => command.arg("--model").arg(dir),
        Origin::Config(path) => command.arg("--config").arg(path),
    };
    command.args(["--device", section.kind]);
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command.args(settings).args(["--repeats", &args.repeats.to_string()]);
    let (temperature, top_k) = (SAMPLING.temperature.to_string(), SAMPLING.top_k.to_string());
    command.args(["--temperature", &temperature, "--top-k", &top_k]);
    progress(format_args!("{}, {}: peers, by {}", subject.name, section.dtype, script.display()));
    let stop = |problem: String| {
        Stop::unusable(format!("--peers: {} {FOLDER}/{name}: {problem}", args.python.display()))
    };
    let output = command.output().map_err(|error| stop(format!("cannot be started: {error}")))?;
    if !output.status.success() {
        return Err(stop(output.status.to_string()));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|error| stop(format!("prints no report: {error}")))?;
    if answer.rows.is_empty() {
        return Err(stop("prints a report without rows".into()));
    }
    Ok(answer)
}

/// Puts peers' rows behind the row of ours that each belongs to.
fn behind_ours(
    section: &mut Section,
    measure: Measure,
    peers: &[Peer],
    belong: impl Fn(&Row, &Peer) -> bool,
) {
    let mut rows = Vec::new();
    for row in section.rows.drain(..) {
        let ours = row.measure == measure && row.system == OURS;
        let theirs = peers.iter().filter(|peer| ours && belong(&row, peer)).map(|peer| beside(&row, peer));
        let theirs: Vec<Row> = theirs.collect();
        rows.push(row);
        rows.extend(theirs);
    }
    section.rows = rows;
}

/// A peer's row, as the same measurement of another system.
fn beside(ours: &Row, peer: &Peer) -> Row {
    let words = ["pytorch", &peer.mode].into_iter().chain(peer.formulation.as_deref());
    let faster = ours.median / peer.us_median;
    Row {
        system: words.collect::<Vec<_>>().join(" "),
        median: peer.us_median,
        p90: peer.us_p90,
        repeats: peer.repeats,
        tokens_per_s: ours.tokens_per_s.map(|rate| rate * faster),
        gflop_per_s: ours.gflop_per_s.map(|rate| rate * faster),
        bytes_per_s: None,
        bandwidth_share: None,
        times_ours: Some(peer.us_median / ours.median),
        ..ours.clone()
    }
}
