//! `touchstone bench`: how fast a model runs here, after a check that it runs right.

mod args;
mod cold_start;
mod gate;
mod measure;
mod peers;
mod report;
mod row;
mod subject;
mod svg;
mod verbs;

use std::fmt::Display;
use std::num::NonZeroUsize;

use touchstone_runtime::device::{Device, Job, dispatch};
use touchstone_runtime::{Error, threads};

pub use args::BenchArgs;

use crate::exit::{Outcome, complain, print};
use args::Measure;
use measure::{Bench, bandwidth};
use report::Section;
use subject::{Origin, Subject};

/// Tokens of a generation where the arguments do not say.
const NEW_TOKENS: usize = 200;

/// Why nothing can be reported.
pub struct Stop {
    outcome: Outcome,
    problem: String,
}

impl Stop {
    fn unusable(problem: impl Into<String>) -> Self {
        Self { outcome: Outcome::Unusable, problem: problem.into() }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        let outcome = if matches!(error, Error::NoDevice(_)) { Outcome::NoDevice } else { Outcome::Unusable };
        Self { outcome, problem: error.chain() }
    }
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Outcome {
    let told = measure_all(args).map(|sections| {
        let printed = match args.json {
            true => print(&report::as_json(&sections)),
            false => print(&report::as_text(&sections)),
        };
        // The figures are out by now: a picture that cannot be written does not cost them.
        draw(args, &sections).map(|()| printed)
    });
    told.flatten().unwrap_or_else(|Stop { outcome, problem }| {
        complain(problem);
        outcome
    })
}

/// Every model in every precision. Nothing is reported unless all of it can be.
fn measure_all(args: &BenchArgs) -> Result<Vec<Section>, Stop> {
    args.check()?;
    if let Some(count) = args.threads {
        threads::limit(count.into());
    }
    let subjects = Subject::all(args)?;
    let mut sections = Vec::new();
    for subject in &subjects {
        let new_tokens = new_tokens(args, subject)?;
        for &dtype in &args.dtype {
            let run = Run { args, subject, new_tokens };
            let mut section = dispatch(run, args.device, dtype, subject.config.dtype)??;
            if args.peers {
                add_peers(args, subject, &mut section)?;
            }
            sections.push(section);
        }
    }
    Ok(sections)
}

/// Those asked for, or the default, within the context: nothing here slides a window, as peers do not.
fn new_tokens(args: &BenchArgs, subject: &Subject) -> Result<usize, Stop> {
    let most = (subject.config.max_position_embeddings - 1).max(1);
    match args.new_tokens.map(NonZeroUsize::get) {
        None => Ok(NEW_TOKENS.min(most)),
        Some(count) if count <= most => Ok(count),
        Some(count) => Err(Stop::unusable(format!(
            "--new-tokens: is {count}, expected at most {most}: with the prompt's one, that is the context of {}",
            subject.name
        ))),
    }
}

/// Beside the decode row, once our own model has left the device.
fn add_peers(args: &BenchArgs, subject: &Subject, section: &mut Section) -> Result<(), Stop> {
    let place = section.rows.iter().position(|row| row.measure == Measure::Decode);
    let place = place.expect("the arguments were checked: --peers comes with decode");
    let (ours, new_tokens) = (&section.rows[place], section.new_tokens);
    let found = peers::run(args, subject, section.kind, section.dtype, new_tokens, ours)?;
    section.rows.splice(place + 1..place + 1, found.rows);
    section.peers = Some(found.environment);
    Ok(())
}

fn draw(args: &BenchArgs, sections: &[Section]) -> Result<(), Stop> {
    let Some(path) = &args.svg else { return Ok(()) };
    std::fs::write(path, svg::latency_by_size(sections))
        .map_err(|error| Stop::unusable(format!("{}: cannot be written: {error}", path.display())))
}

/// A line of progress on standard error.
fn progress(what: impl Display) {
    eprintln!("{what}");
}

/// One model in one precision, waiting for its device.
struct Run<'a> {
    args: &'a BenchArgs,
    subject: &'a Subject,
    new_tokens: usize,
}

impl Job for Run<'_> {
    type Output = Result<Section, Stop>;

    fn run<D: Device>(self, mut device: D, choice: &str) -> Result<Section, Stop> {
        let Self { args, subject, new_tokens } = self;
        let dtype = device.precision().name;
        let check = gate::check(&mut device, subject, &self.batches())?;
        let repeats = args.repeats.get();
        let mut bench = Bench { device: &mut device, subject, new_tokens, repeats };
        let token_bytes = bench.token_bytes();
        let mut limit_bytes_per_s = bandwidth(bench.device, token_bytes);
        let mut rows = Vec::new();
        for &measure in &args.measure {
            progress(format_args!("{}, {dtype}: {}", subject.name, measure.name()));
            match (measure, &subject.origin) {
                (Measure::Decode, _) => {
                    let row = bench.decode()?;
                    // Before and after: what else uses the machine comes and goes.
                    let after = bandwidth(bench.device, token_bytes);
                    limit_bytes_per_s = limit_bytes_per_s.into_iter().chain(after).reduce(f64::max);
                    rows.push(row.bytes(token_bytes, limit_bytes_per_s));
                }
                (Measure::Context, _) => rows.extend(bench.context()?),
                (Measure::Batch, _) => {
                    for batch in &args.batches {
                        rows.push(bench.batch(batch.get())?);
                    }
                }
                (Measure::Prefill, _) => rows.extend(bench.prefill()?),
                (Measure::Verbs, _) => rows.extend(verbs::verbs(bench.device, subject, repeats)?),
                (Measure::ColdStart, Origin::Model(dir)) => {
                    rows.push(cold_start::cold_start(dir, args.device, dtype, repeats)?);
                }
                (Measure::ColdStart, Origin::Config(_)) => {
                    unreachable!("the arguments were checked: cold-start comes without --config")
                }
            }
        }
        Ok(Section {
            model: subject.name.clone(),
            weights: subject.weights(),
            kind: D::KIND,
            device: choice.to_owned(),
            dtype,
            parameters: subject.config.parameters(),
            config: subject.config.clone(),
            new_tokens,
            token_bytes,
            bandwidth_bytes_per_s: limit_bytes_per_s,
            check,
            rows,
            peers: None,
        })
    }
}

impl Run<'_> {
    /// The batch sizes that will be timed, each of which is checked.
    fn batches(&self) -> Vec<usize> {
        let batches = self.args.batches.iter().map(|batch| batch.get());
        let timed = batches.filter(|_| self.args.wants(Measure::Batch));
        [1].into_iter().chain(timed.filter(|&batch| batch > 1)).collect()
    }
}
