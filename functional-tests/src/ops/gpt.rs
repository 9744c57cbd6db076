//! A whole model: tokens to logits, in one pass, in chunks through the KV cache, or token by token as in generation.

use serde::Deserialize;
use serde_json::{Map, Value};
use touchstone_golden::Case;
use touchstone_runtime::plan::{Capacity, LogitRows};
use touchstone_runtime::weights::RandomWeights;
use touchstone_runtime::{Backend, Config, Model};

use super::parts::with_taps;
use super::{Mode, Produced, module_modes};
use crate::error::Result;
use crate::operands::{Operands, Trained};

/// Sequences of a batch that is fed token by token.
const COPIES: usize = 64;
/// Tokens of their longest prompt.
const PROMPT_MAX: usize = 5;

/// Beside the chunks, one sequence is fed token by token, by each thing that decodes, and as a batch; several are fed ragged.
pub fn modes(case: &Case) -> Vec<Mode> {
    let logits = case.outputs().iter().find(|output| output.name == "logits");
    let shape = logits.map_or(&[][..], |output| &output.reference.shape);
    let others: &[_] = match *shape {
        [1, ..] => &[Mode::Decode, Mode::Grid, Mode::Shards, Mode::Steps, Mode::Batch],
        [_, time, _] if time > 1 => &[Mode::Ragged],
        _ => &[],
    };
    module_modes(case, true).into_iter().chain(others.iter().copied()).collect()
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let case = operands.case;
    let (tokens, [batch, time]) = operands.tokens("tokens")?;
    let mut chunks = chunks(case, time)?;
    if mode == Mode::Ragged && chunks.len() == 1 {
        chunks = vec![time - 1, 1];
    }
    // Ragged, each sequence takes its chunks in an order of its own: a pass finds them at different places, and with different lengths.
    let turn = usize::from(mode == Mode::Ragged);
    let chunk = |pass: usize, sequence: usize| chunks[(pass + turn * sequence) % chunks.len()];
    let decodes = matches!(mode, Mode::Decode | Mode::Grid | Mode::Shards | Mode::Steps);
    let longest = if decodes { 1 } else { chunks.iter().copied().max().unwrap_or(time) };
    let capacity = match mode {
        Mode::Batch => Capacity { batch: COPIES, time: PROMPT_MAX.min(time), logits: LogitRows::Last },
        _ => Capacity { batch, time: longest, logits: LogitRows::All },
    };
    let mut model = model(b, operands, capacity)?;
    let vocab = model.config().vocab_size;
    let mut logits = Produced {
        name: "logits".into(),
        shape: vec![batch, time, vocab],
        values: vec![f64::NAN; batch * time * vocab],
    };
    if mode == Mode::Batch {
        logits.values = decode_batch(b, &mut model, &tokens, vocab)?;
        return Ok(vec![logits]);
    }
    if decodes {
        logits.values = decode(b, &mut model, &tokens)?;
        return Ok(vec![logits]);
    }
    let mut forward = |b: &mut B| {
        model.rewind(b, &vec![0; batch])?;
        let mut done = vec![0; batch];
        for pass in 0..chunks.len() {
            let lengths: Vec<usize> = (0..batch).map(|sequence| chunk(pass, sequence)).collect();
            let longest = lengths.iter().copied().max().unwrap_or(0);
            let mut fed = vec![0; batch * longest];
            for (sequence, fed) in fed.chunks_exact_mut(longest).enumerate() {
                let (done, length) = (done[sequence], lengths[sequence]);
                fed[..length].copy_from_slice(&tokens[sequence * time + done..][..length]);
            }
            model.forward_padded(b, &fed, lengths.iter().copied())?;
            let rows = model.read_logits(b, batch * longest)?;
            for (sequence, rows) in rows.chunks_exact(longest * vocab).enumerate() {
                let (start, len) = ((sequence * time + done[sequence]) * vocab, lengths[sequence] * vocab);
                logits.values[start..start + len].copy_from_slice(&rows[..len]);
                done[sequence] += lengths[sequence];
            }
            model.advance();
        }
        Ok(())
    };
    if matches!(mode, Mode::Fused | Mode::Ragged) {
        forward(b)?;
        return Ok(vec![logits]);
    }
    with_taps(b, case, "logits", batch, mode, forward)
}

/// The case's model: a committed one, one whose weights are drawn, or one whose weights it holds.
fn model<B: Backend>(b: &mut B, operands: &Operands<'_>, capacity: Capacity) -> Result<Model<B>> {
    let case = operands.case;
    if case.has_config("model") {
        let checkpoint = operands.checkpoint(&trained(case)?)?;
        return Ok(Model::new(b, checkpoint.config(), &checkpoint, capacity)?);
    }
    let config = config(case)?;
    if case.has_config("weights_seed") {
        #[derive(Deserialize)]
        struct Drawn {
            weights_seed: u32,
        }
        let Drawn { weights_seed } = case.config()?;
        let weights = RandomWeights::new(weights_seed).stored(config.dtype);
        return Ok(Model::new(b, &config, &weights, capacity)?);
    }
    Ok(Model::new(b, &config, operands, capacity)?)
}

/// The logits of one sequence, every token but the first fed to a decode step; what the step samples is dropped.
fn decode<B: Backend>(b: &mut B, model: &mut Model<B>, tokens: &[u32]) -> Result<Vec<f64>> {
    model.rewind(b, &[0])?;
    model.forward(b, &tokens[..1])?;
    let mut logits = model.read_logits(b, 1)?;
    model.sample(b)?;
    let mut sampled = Vec::new();
    for token in &tokens[1..] {
        model.take(b, &mut sampled)?;
        model.replace_tokens(b, &[*token])?;
        model.decode(b, 1)?;
        logits.extend(model.read_logits(b, 1)?);
    }
    Ok(logits)
}

/// The same of copies of the sequence that stand at different places: each position's logits are of another copy, as far as it passes there. Copies
/// that are done idle, past the end of the context too.
fn decode_batch<B: Backend>(
    b: &mut B,
    model: &mut Model<B>,
    tokens: &[u32],
    vocab: usize,
) -> Result<Vec<f64>> {
    let length = |copy: usize| (1 + copy % PROMPT_MAX).min(tokens.len());
    let longest = PROMPT_MAX.min(tokens.len());
    let mut logits = vec![f64::NAN; tokens.len() * vocab];
    let mut keep = |rows: &[f64], step: usize| {
        for (copy, row) in rows.chunks_exact(vocab).enumerate() {
            let position = length(copy) + step - 1;
            let Some(kept) = logits.chunks_exact_mut(vocab).nth(position) else { continue };
            if position % COPIES == copy || kept[0].is_nan() {
                kept.copy_from_slice(row);
            }
        }
    };
    model.rewind(b, &[0; COPIES])?;
    model.forward_padded(b, &tokens[..longest].repeat(COPIES), (0..COPIES).map(length))?;
    keep(&model.read_logits(b, COPIES)?, 0);
    model.sample(b)?;
    let mut sampled = Vec::new();
    for step in 0..tokens.len() - 1 {
        model.take(b, &mut sampled)?;
        let next = |copy| tokens[(length(copy) + step).min(tokens.len() - 1)];
        model.replace_tokens(b, &(0..COPIES).map(next).collect::<Vec<_>>())?;
        model.decode(b, 1)?;
        keep(&model.read_logits(b, COPIES)?, step + 1);
    }
    Ok(logits)
}

/// How the case is fed: positive, and together T.
fn chunks(case: &Case, time: usize) -> Result<Vec<usize>> {
    #[derive(Deserialize)]
    struct Chunks {
        chunks: Option<Vec<usize>>,
    }
    let chunks = case.config::<Chunks>()?.chunks.unwrap_or_else(|| vec![time]);
    let sum = chunks.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if sum != Some(time) || chunks.contains(&0) {
        let problem = format!("are {chunks:?}, expected positive numbers that add up to {time}");
        return Err(case.invalid("config.chunks", problem).into());
    }
    Ok(chunks)
}

/// The model's dimensions, which stand in the case as they do in a `config.json`.
fn config(case: &Case) -> Result<Config> {
    let mut fields: Map<String, Value> = case.config()?;
    fields.retain(|field, _| !matches!(field.as_str(), "chunks" | "weights_seed"));
    Ok(Config::parse(&Value::Object(fields).to_string(), &case.path)?)
}

/// The committed model that the case names, and nothing else but its chunks.
fn trained(case: &Case) -> Result<Trained> {
    let mut fields: Map<String, Value> = case.config()?;
    let trained = case.config()?;
    fields.retain(|field, _| !matches!(field.as_str(), "chunks" | "model" | "model_sha256"));
    match fields.keys().next() {
        None => Ok(trained),
        Some(field) => Err(case.invalid(format!("config.{field}"), "is not known beside model").into()),
    }
}
