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

/// Beside the chunks, one sequence is fed token by token, by each thing that decodes.
pub fn modes(case: &Case) -> Vec<Mode> {
    let one = case.outputs().iter().all(|output| output.name != "logits" || output.reference.shape[0] == 1);
    let decoding = [Mode::Decode, Mode::Grid, Mode::Steps].into_iter().filter(|_| one);
    module_modes(case, true).into_iter().chain(decoding).collect()
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let case = operands.case;
    let (tokens, [batch, time]) = operands.tokens("tokens")?;
    let chunks = chunks(case, time)?;
    let decodes = matches!(mode, Mode::Decode | Mode::Grid | Mode::Steps);
    let longest = if decodes { 1 } else { chunks.iter().copied().max().unwrap_or(time) };
    let mut model = model(b, operands, Capacity { batch, time: longest, logits: LogitRows::All })?;
    let vocab = model.config().vocab_size;
    let mut logits = Produced {
        name: "logits".into(),
        shape: vec![batch, time, vocab],
        values: vec![f64::NAN; batch * time * vocab],
    };
    if decodes {
        logits.values = decode(b, &mut model, &tokens)?;
        return Ok(vec![logits]);
    }
    let mut forward = |b: &mut B| {
        model.rewind(b, 0)?;
        let mut done = 0;
        for &chunk in &chunks {
            let fed: Vec<u32> = tokens.chunks_exact(time).flat_map(|row| &row[done..done + chunk]).copied().collect();
            model.forward(b, &fed)?;
            let rows = model.read_logits(b, batch * chunk)?;
            for (sequence, rows) in rows.chunks_exact(chunk * vocab).enumerate() {
                let start = (sequence * time + done) * vocab;
                logits.values[start..start + rows.len()].copy_from_slice(rows);
            }
            model.advance(b, chunk)?;
            done += chunk;
        }
        Ok(())
    };
    if mode == Mode::Fused {
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
    model.rewind(b, 0)?;
    model.forward(b, &tokens[..1])?;
    let mut logits = model.read_logits(b, 1)?;
    model.sample(b, 1)?;
    let mut sampled = Vec::new();
    for token in &tokens[1..] {
        model.take(b, &mut sampled)?;
        model.replace_tokens(b, &[*token])?;
        model.decode(b, 1)?;
        logits.extend(model.read_logits(b, 1)?);
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
