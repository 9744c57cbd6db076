//! The next token of every row: row b is drawn with seed + b, as pick number step + b. By the verb, and by the decoders of large models, each row as
//! the logits of a model of its own.

use std::borrow::Cow;

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::backend::OUTBOX_ROWS;
use touchstone_runtime::config::{Activation, Config, ModelType, StoredDtype};
use touchstone_runtime::plan::{Capacity, LogitRows};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::weights::{Tensor, Values, WeightSource};
use touchstone_runtime::{Backend, Model};

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, ids, number};
use crate::error::{Error, Result};
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    seed: u64,
    step: u32,
}

/// Where the first row's cursor stands before, and how long its pass is: any two numbers that are not each other's.
const PAST: u32 = 5;
const LENGTH: u32 = 3;

/// Vocabularies that decoders pick from: a narrow one, one that none of their blocks sees whole, and that of GPT-2. Each costs compilations.
const DECODED: &[usize] = &[65, 2053, 50257];

pub fn modes(case: &Case) -> Vec<Mode> {
    let decoded = case.operands().any(|(_, _, logits)| {
        let vocab = logits.shape.last().is_some_and(|vocab| DECODED.contains(vocab));
        vocab && logits.values.iter().all(|logit| logit.is_finite())
    });
    let others: &[_] = if decoded { &[Mode::Grid, Mode::Shards] } else { &[] };
    [Mode::Verb].into_iter().chain(others.iter().copied()).collect()
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Settings { temperature, top_k, top_p, seed, step } = operands.case.config()?;
    let logits = operands.input("logits", 2)?;
    let (batch, vocab) = (logits.shape[0], logits.shape[1]);
    if mode != Mode::Verb {
        let rows = logits.values.chunks_exact(vocab).zip(0..);
        let tokens = rows.map(|(logits, row)| {
            let rule = Sampling { temperature, top_k, top_p, seed: seed.wrapping_add(row) };
            decode(b, logits, rule, step.wrapping_add(row as u32))
        });
        let values = tokens.map(|token| token.map(f64::from)).collect::<Result<_>>()?;
        return Ok(vec![Produced { name: "tokens".into(), shape: vec![batch], values }]);
    }
    let logits = Guarded::<B, Wide>::input(b, "logits", &logits.values)?;
    let mut outbox = b.outbox(OUTBOX_ROWS, batch)?;
    let mut tokens = ids(b, "tokens", &vec![u32::MAX; batch])?;
    let rows = 0..number(batch);
    let place = |row: u32| [PAST + row, step.wrapping_add(row), LENGTH + row];
    let places: Vec<_> = rows.clone().map(place).collect();
    let mut cursor = ids(b, "cursor", places.as_flattened())?;
    let rule = |row: u32| Sampling { temperature, top_k, top_p, seed: seed.wrapping_add(row.into()) };
    b.set_sampling(&mut outbox, &rows.map(rule).collect::<Vec<_>>())?;
    b.sample(&mut outbox, &mut tokens, &mut cursor, &logits.buffer, batch, vocab)?;

    let mut taken = Vec::new();
    b.take(&mut outbox, &mut taken)?;
    let tokens = b.read_ids(&tokens, batch)?;
    expect("the outbox", &taken, &tokens)?;
    let moved: Vec<_> =
        places.iter().map(|&[past, step, length]| [past + length, step.wrapping_add(1), 1]).collect();
    let moved = moved.as_flattened();
    expect("the cursors after sampling", &b.read_ids(&cursor, moved.len())?, moved)?;
    let values = tokens.into_iter().map(f64::from).collect();
    Ok(vec![Produced { name: "tokens".into(), shape: vec![batch], values }])
}

fn expect(what: &'static str, actual: &[u32], expected: &[u32]) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    Err(Error::SideEffect { what, actual: format!("{actual:?}"), expected: format!("{expected:?}") })
}

/// The token that a decoder picks as number `step` from these logits.
fn decode<B: Backend>(b: &mut B, logits: &[f64], rule: Sampling, step: u32) -> Result<u32> {
    let source = HeadOf { logits };
    let mut model = Model::new(b, &source.config(), &source, Capacity { batch: 1, time: 1, logits: LogitRows::Last })?;
    model.set_sampling(b, &[rule])?;
    model.rewind(b, &[step])?;
    model.replace_tokens(b, &[0])?;
    model.decode(b, 1)?;
    let mut tokens = Vec::new();
    model.take(b, &mut tokens)?;
    Ok(tokens[0])
}

/// A model that has these logits at every position: the last norm gives the first unit vector, and the head's first column are the logits.
struct HeadOf<'a> {
    logits: &'a [f64],
}

impl HeadOf<'_> {
    fn config(&self) -> Config {
        Config {
            vocab_size: self.logits.len(),
            max_position_embeddings: 16,
            hidden_size: 128,
            num_attention_heads: 4,
            intermediate_size: 128,
            num_hidden_layers: 1,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::Gelu,
            tie_word_embeddings: true,
            model_type: ModelType::TouchstoneGpt,
            dtype: StoredDtype::Float32,
        }
    }
}

impl WeightSource for HeadOf<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> touchstone_runtime::Result<Tensor<'_>> {
        let mut values = vec![0.0; shape.iter().product()];
        match name {
            "embedding.token.weight" => {
                for (row, logit) in values.chunks_exact_mut(shape[1]).zip(self.logits) {
                    row[0] = *logit;
                }
            }
            "final_norm.bias" => values[0] = 1.0,
            _ => {}
        }
        Ok(Tensor { shape: shape.to_vec(), values: Values::F64(Cow::Owned(values)) })
    }
}
