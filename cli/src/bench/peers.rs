//! PyTorch on the same model, in the same run: `benches/peers/decode.py`, which checks its own tokens before it times.

use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Map, Value};
use touchstone_functional_tests::find_root;

use super::args::BenchArgs;
use super::measure::SAMPLING;
use super::row::Row;
use super::subject::{Origin, Subject};
use super::{Stop, progress};

/// Below the repository's root.
const SCRIPT: &str = "benches/peers/decode.py";

/// What the script prints.
#[derive(Deserialize)]
struct Answer {
    rows: Vec<Peer>,
    /// Versions, device and settings.
    #[serde(flatten)]
    environment: Map<String, Value>,
}

/// A row of it.
#[derive(Deserialize)]
struct Peer {
    mode: String,
    formulation: Option<String>,
    us_per_token_median: f64,
    us_per_token_p90: f64,
    repeats: usize,
}

/// What the peers took, and what they ran on.
pub struct Peers {
    /// Versions, device and settings.
    pub environment: Map<String, Value>,
    /// A row a mode.
    pub rows: Vec<Row>,
}

/// Runs the peers for the generation that gave `ours`.
///
/// # Errors
/// [`crate::exit::Outcome::Unusable`] where they cannot run, or end with an error.
pub fn run(
    args: &BenchArgs,
    subject: &Subject,
    kind: &str,
    dtype: &str,
    new_tokens: usize,
    ours: &Row,
) -> Result<Peers, Stop> {
    let script = find_root().map_err(|error| Stop::unusable(format!("--peers: {error}")))?.join(SCRIPT);
    let default_modes = if kind == "cuda" { "eager,compiled" } else { "eager" };
    let mut command = Command::new(&args.python);
    command.arg(&script).stderr(Stdio::inherit());
    match &subject.origin {
        Origin::Model(dir) => command.arg("--model").arg(dir),
        Origin::Config(path) => command.arg("--config").arg(path),
    };
    command.args(["--device", kind, "--dtypes", dtype]);
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command.args(["--modes", args.peer_modes.as_deref().unwrap_or(default_modes)]);
    command.args(["--new-tokens", &new_tokens.to_string(), "--repeats", &args.repeats.to_string()]);
    command.args([
        "--temperature",
        &SAMPLING.temperature.to_string(),
        "--top-k",
        &SAMPLING.top_k.to_string(),
    ]);
    progress(format_args!("{}, {dtype}: peers, by {}", subject.name, script.display()));
    let stop =
        |problem: String| Stop::unusable(format!("--peers: {} {SCRIPT}: {problem}", args.python.display()));
    let output = command.output().map_err(|error| stop(format!("cannot be started: {error}")))?;
    if !output.status.success() {
        return Err(stop(output.status.to_string()));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|error| stop(format!("prints no report: {error}")))?;
    if answer.rows.is_empty() {
        return Err(stop("prints a report without rows".into()));
    }
    let rows = answer.rows.iter().map(|peer| beside(ours, peer)).collect();
    Ok(Peers { environment: answer.environment, rows })
}

/// A peer's row, as the same measurement of another system.
fn beside(ours: &Row, peer: &Peer) -> Row {
    let words = ["pytorch", &peer.mode].into_iter().chain(peer.formulation.as_deref());
    Row {
        system: words.collect::<Vec<_>>().join(" "),
        median: peer.us_per_token_median,
        p90: peer.us_per_token_p90,
        repeats: peer.repeats,
        tokens_per_s: Some(1e6 / peer.us_per_token_median),
        bytes_per_s: None,
        bandwidth_share: None,
        times_ours: Some(peer.us_per_token_median / ours.median),
        ..ours.clone()
    }
}
