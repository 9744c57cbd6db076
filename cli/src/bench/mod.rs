//! `touchstone bench`: how fast a model runs here, after a check that it runs right.

mod args;
mod cold_start;
mod gate;
mod handoffs;
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

/// Runs the command. What was measured is told, also where something later cannot be.
pub fn run(args: &BenchArgs) -> Outcome {
    let mut sections = Vec::new();
    let measured = measure_all(args, &mut sections);
    sections.retain(|section| !section.rows.is_empty());
    let (mut outcome, mut drawn) = (Outcome::Passed, Ok(()));
    if !sections.is_empty() {
        let report = if args.json { report::as_json(&sections) } else { report::as_text(&sections) };
        outcome = print(&report);
        drawn = draw(args, &sections);
    }
    for Stop { outcome: why, problem } in [measured, drawn].into_iter().filter_map(Result::err) {
        complain(problem);
        outcome = outcome.and(why);
    }
    outcome
}

/// Every model in every precision, into `sections`, which hold what was measured also where this ends with an error.
fn measure_all(args: &BenchArgs, sections: &mut Vec<Section>) -> Result<(), Stop> {
    args.check()?;
    if let Some(count) = args.threads {
        threads::limit(count.into());
    }
    for subject in &Subject::all(args)? {
        let new_tokens = new_tokens(args, subject)?;
        for &dtype in &args.dtype {
            let run = Run { args, subject, new_tokens, sections };
            dispatch(run, args.device, dtype, subject.config.dtype)??;
            let section = sections.last_mut().expect("a run adds its section");
            if args.wants(Measure::ColdStart) {
                let Origin::Model(dir) = &subject.origin else {
                    unreachable!("the arguments were checked: cold-start comes without --config")
                };
                cold_start::add(args, dir, section)?;
            }
            if args.peers {
                peers::add(args, subject, section)?;
            }
        }
    }
    Ok(())
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

fn draw(args: &BenchArgs, sections: &[Section]) -> Result<(), Stop> {
    let Some(path) = &args.svg else { return Ok(()) };
    if !sections.iter().flat_map(|section| &section.rows).any(|row| row.measure == Measure::Decode) {
        return Ok(());
    }
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
    /// Where its section goes, before the first row is measured.
    sections: &'a mut Vec<Section>,
}

impl Job for Run<'_> {
    type Output = Result<(), Stop>;

    fn run<D: Device>(self, mut device: D, choice: &str) -> Result<(), Stop> {
        let check = gate::check(&mut device, self.subject, &self.batches())?;
        let Self { args, subject, new_tokens, sections } = self;
        let (dtype, repeats) = (device.precision().name, args.repeats.get());
        let mut bench = Bench { device: &mut device, subject, new_tokens, repeats };
        let token_bytes = bench.token_bytes();
        sections.push(Section {
            model: subject.name.clone(),
            weights: subject.weights(),
            kind: D::KIND,
            device: choice.to_owned(),
            dtype,
            parameters: subject.config.parameters(),
            config: subject.config.clone(),
            new_tokens,
            token_bytes,
            bandwidth_bytes_per_s: bandwidth(bench.device, token_bytes),
            check,
            rows: Vec::new(),
            peers: None,
        });
        let Section { rows, bandwidth_bytes_per_s: limit, .. } = sections.last_mut().expect("just added");
        for &measure in &args.measure {
            if measure != Measure::ColdStart {
                progress(format_args!("{}, {dtype}: {}", subject.name, measure.name()));
            }
            match measure {
                Measure::Decode => {
                    let row = bench.decode()?;
                    // Before and after: what else uses the machine comes and goes.
                    let after = bandwidth(bench.device, token_bytes);
                    *limit = limit.iter().copied().chain(after).reduce(f64::max);
                    rows.push(row.bytes(token_bytes, *limit));
                }
                Measure::Context => rows.extend(bench.context()?),
                Measure::Batch => {
                    for batch in &args.batches {
                        rows.push(bench.batch(batch.get())?);
                    }
                }
                Measure::Prefill => rows.extend(bench.prefill()?),
                Measure::Verbs => rows.extend(verbs::verbs(bench.device, subject, repeats)?),
                Measure::Handoffs => {
                    let before = rows.len();
                    for batch in &args.batches {
                        rows.extend(bench.handoffs(batch.get())?);
                    }
                    if rows.len() == before {
                        return Err(Stop::unusable(format!(
                            "--measure handoffs: nothing here decodes {} in {dtype} by handoffs of clusters, as GPUs from Hopper on can",
                            subject.name
                        )));
                    }
                }
                // Measured when the device is closed.
                Measure::ColdStart => {}
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// The batch sizes that will be timed, each of which is checked.
    fn batches(&self) -> Vec<usize> {
        let batches = self.args.batches.iter().map(|batch| batch.get());
        let several = self.args.wants(Measure::Batch) || self.args.wants(Measure::Handoffs);
        let timed = batches.filter(|_| several);
        [1].into_iter().chain(timed.filter(|&batch| batch > 1)).collect()
    }
}
