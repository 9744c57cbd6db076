//! `--batch`: many prompts at once, each with settings of its own, from JSON lines.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use touchstone_runtime::device::Device;
use touchstone_runtime::generate::{self, Request};
use touchstone_runtime::plan::Capacity;
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::tokenizer::Tokenizer;
use touchstone_runtime::{Config, Error, Result};

use crate::args::Args;
use crate::session::Speaker;
use crate::stats::{BatchStats, Generated};
use crate::voice::{Spoken, Voice};
use crate::{Failure, say};

/// The most prompts that run at once; more follow in turns.
const AT_ONCE_MAX: usize = 64;

/// A line of the file as it stands there. What a value may be is checked by hand, so that the message can name its field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Value,
    max_new_tokens: Option<Value>,
    seed: Option<Value>,
    temperature: Option<Value>,
    top_k: Option<Value>,
    top_p: Option<Value>,
}

/// A prompt with its settings, checked.
pub struct Prompt {
    /// Its line of the file, from 1.
    line: usize,
    text: String,
    tokens: Vec<u32>,
    max_new_tokens: u32,
    sampling: Sampling,
}

/// The prompts in `text`, the content of `path`. What a line lacks is as on the command line: `sampling` and `args`.
///
/// # Errors
/// [`Error::Invalid`], which names the file, the line and the field.
pub fn parse(
    text: &str,
    path: &Path,
    args: &Args,
    sampling: Sampling,
    tokenizer: &Tokenizer,
) -> Result<Vec<Prompt>> {
    let invalid = |field: String, problem| Error::Invalid { path: path.into(), field, problem };
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.map(|(line, text)| {
        prompt(line, text, args, sampling, tokenizer).map_err(|(field, problem)| {
            let place =
                if field.is_empty() { format!("line {line}") } else { format!("line {line}: {field}") };
            invalid(place, problem)
        })
    });
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() {
        return Err(invalid("line 1".into(), "is missing, expected a JSON object with a prompt".into()));
    }
    Ok(prompts)
}

/// One line's prompt, or the field that is wrong, empty for the line itself, and what is wrong with it.
fn prompt(
    line: usize,
    text: &str,
    args: &Args,
    given: Sampling,
    tokenizer: &Tokenizer,
) -> Result<Prompt, (&'static str, String)> {
    let fields: Line = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        // The position that it ends with counts lines of this one line.
        let what = message.split(" at line 1 column").next().unwrap_or(&message);
        ("", format!("column {}: {what}, expected one JSON object", error.column()))
    })?;
    let text = match &fields.prompt {
        Value::String(text) if !text.is_empty() => text.clone(),
        other => return Err(("prompt", format!("is {other}, expected a text of at least one character"))),
    };
    let tokens = tokenizer.encode(&text).map_err(|error| ("prompt", error.chain()))?;
    let max_new_tokens = match whole("max_new_tokens", fields.max_new_tokens, u32::MAX.into(), 1)? {
        Some(count) => count as u32,
        None => args.max_new_tokens,
    };
    let number = |field, value: Option<Value>, default: f32| match value {
        None => Ok(default),
        Some(value) => {
            let number = value.as_f64().ok_or_else(|| (field, format!("is {value}, expected a number")))?;
            Ok(number as f32)
        }
    };
    let sampling = Sampling {
        temperature: number("temperature", fields.temperature, given.temperature)?,
        top_k: whole("top_k", fields.top_k, u32::MAX.into(), 0)?.map_or(given.top_k, |k| k as u32),
        top_p: number("top_p", fields.top_p, given.top_p)?,
        seed: whole("seed", fields.seed, u64::MAX, 0)?.unwrap_or(given.seed),
    };
    let sampling = sampling.checked().map_err(|error| match error {
        Error::Argument { name: "top-p", problem } => ("top_p", problem),
        Error::Argument { name, problem } => (name, problem),
        other => ("", other.chain()),
    })?;
    let sampling = if args.greedy { Sampling { seed: sampling.seed, ..Sampling::GREEDY } } else { sampling };
    Ok(Prompt { line, text, tokens, max_new_tokens, sampling })
}

/// A field's whole number from `least` to `most`, where it is there.
fn whole(
    field: &'static str,
    value: Option<Value>,
    most: u64,
    least: u64,
) -> Result<Option<u64>, (&'static str, String)> {
    let Some(value) = value else { return Ok(None) };
    match value.as_u64().filter(|number| (least..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err((field, format!("is {value}, expected a whole number from {least} to {most}"))),
    }
}

/// The capacity for as many of them as run at once: in as few turns as there can be, and those of one size.
pub fn capacity(prompts: &[Prompt], config: &Config) -> Capacity {
    let turns = prompts.len().div_ceil(AT_ONCE_MAX);
    let lengths = prompts.iter().map(|prompt| (prompt.tokens.len(), prompt.max_new_tokens as usize));
    generate::capacity_for(config.max_position_embeddings, prompts.len().div_ceil(turns), lengths)
}

/// Continues all prompts and prints the texts in their order, or everything as one JSON object.
pub fn run<D: Device>(
    speaker: &mut Speaker<'_, '_, D>,
    prompts: &[Prompt],
    capacity: Capacity,
    device: &str,
    dir: &Path,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut answers = Vec::new();
    let (mut interrupted, mut prefill) = (false, Duration::ZERO);
    for turn in prompts.chunks(capacity.batch) {
        let (spoken, first) = answer(speaker, turn)?;
        prefill += first;
        interrupted = spoken.iter().any(|spoken| spoken.interrupted);
        for (prompt, spoken) in turn.iter().zip(spoken) {
            if !speaker.args.json {
                print(prompt, &spoken, speaker.args.echo)?;
            }
            answers.push(Answer::new(prompt, spoken));
        }
        if interrupted {
            break;
        }
    }
    let generated = Generated {
        prompts: answers.len(),
        at_once: capacity.batch,
        tokens: answers.iter().map(|answer| answer.tokens.len()).sum(),
        prefill,
        time: began.elapsed(),
    };
    let stats = speaker.batch_stats(capacity, generated);
    if speaker.args.stats {
        say(&stats.to_string());
    }
    if speaker.args.json {
        let report =
            Report { model: dir.display().to_string(), device, interrupted, prompts: answers, stats };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    if interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Continues prompts that fit into one batch. Gives the time of their pass, too.
fn answer<D: Device>(
    speaker: &mut Speaker<'_, '_, D>,
    prompts: &[Prompt],
) -> Result<(Vec<Spoken>, Duration), Failure> {
    let request = |prompt: &'_ Prompt| Voice::gathering(speaker.tokenizer, prompt.max_new_tokens as usize);
    let mut voices: Vec<_> = prompts.iter().map(request).collect();
    let requests: Vec<_> = prompts.iter().map(Prompt::request).collect();
    let timings = speaker.generator.generate(&requests, |sequence, token| voices[sequence].token(token))?;
    let spoken = voices.into_iter().map(Voice::finish).collect::<io::Result<_>>()?;
    Ok((spoken, timings.prefill))
}

/// A text below the number of its line.
fn print(prompt: &Prompt, spoken: &Spoken, echo: bool) -> io::Result<()> {
    let (before, text) = (if echo { &*prompt.text } else { "" }, &spoken.text);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let mut out = io::stdout().lock();
    out.write_all(format!("--- line {}\n{before}{text}{end}", prompt.line).as_bytes())?;
    out.flush()
}

impl Prompt {
    fn request(&self) -> Request<'_> {
        Request {
            prompt: &self.tokens,
            max_new_tokens: self.max_new_tokens as usize,
            sampling: self.sampling,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    device: &'a str,
    interrupted: bool,
    prompts: Vec<Answer<'a>>,
    stats: BatchStats,
}

/// One continuation, with what was asked.
#[derive(Serialize)]
struct Answer<'a> {
    line: usize,
    prompt: &'a str,
    max_new_tokens: u32,
    seed: u64,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    text: String,
    tokens: Vec<u32>,
}

impl<'a> Answer<'a> {
    fn new(prompt: &'a Prompt, spoken: Spoken) -> Self {
        let Sampling { temperature, top_k, top_p, seed } = prompt.sampling;
        Self {
            line: prompt.line,
            prompt: &prompt.text,
            max_new_tokens: prompt.max_new_tokens,
            seed,
            temperature,
            top_k,
            top_p,
            text: spoken.text,
            tokens: spoken.tokens,
        }
    }
}
