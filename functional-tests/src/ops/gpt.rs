//! A whole model: tokens to logits, in one pass or in chunks through the KV cache.

use serde::Deserialize;
use serde_json::{Map, Value};
use touchstone_golden::Case;
use touchstone_runtime::plan::{Capacity, LogitRows};
use touchstone_runtime::{Backend, Config, Model};

use super::parts::with_taps;
use super::{Mode, Produced, module_modes};
use crate::error::Result;
use crate::operands::{Operands, Trained};

pub fn modes(case: &Case) -> Vec<Mode> {
    module_modes(case, true)
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let case = operands.case;
    let (tokens, [batch, time]) = operands.tokens("tokens")?;
    let chunks = chunks(case, time)?;
    let capacity =
        Capacity { batch, time: chunks.iter().copied().max().unwrap_or(time), logits: LogitRows::All };
    let mut model = if case.has_config("model") {
        let checkpoint = operands.checkpoint(&trained(case)?)?;
        Model::new(b, checkpoint.config(), &checkpoint, capacity)?
    } else {
        Model::new(b, &config(case)?, operands, capacity)?
    };
    let vocab = model.config().vocab_size;
    let mut logits = Produced {
        name: "logits".into(),
        shape: vec![batch, time, vocab],
        values: vec![f64::NAN; batch * time * vocab],
    };
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
    fields.remove("chunks");
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
