//! Greedy generation by a committed model, past the end of its context.

use std::ops::ControlFlow;

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::generate::{Generator, LOOKAHEAD, Request, capacity};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::{Backend, Model};

use super::{Mode, Produced};
use crate::error::Result;
use crate::operands::{Operands, Trained};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: String,
    model_sha256: String,
    max_new_tokens: usize,
    /// Of the prompts, where they are unequal: behind them is padding.
    lengths: Option<Vec<usize>>,
}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Fused, Mode::Grid, Mode::Shards, Mode::Steps, Mode::Plain]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { model, model_sha256, max_new_tokens, lengths } = operands.case.config()?;
    let checkpoint = operands.checkpoint(&Trained { model, model_sha256 })?;
    let (prompts, [batch, time]) = operands.tokens("tokens")?;
    let lengths = lengths.unwrap_or_else(|| vec![time; batch]);
    if lengths.len() != batch || lengths.iter().any(|&length| length > time) {
        let problem = format!("are {lengths:?}, expected {batch} of at most {time}");
        return Err(operands.case.invalid("config.lengths", problem).into());
    }
    let config = checkpoint.config();
    let mut model = Model::new(b, config, &checkpoint, capacity(config.max_position_embeddings, batch))?;
    let mut generator = Generator::new(b, &mut model, batch, LOOKAHEAD);
    let rows = prompts.chunks_exact(time).zip(&lengths).map(|(row, &length)| &row[..length]);
    let requests: Vec<_> =
        rows.map(|prompt| Request { prompt, max_new_tokens, sampling: Sampling::GREEDY }).collect();
    let mut texts = vec![Vec::new(); batch];
    generator.generate(&requests, |sequence, token| {
        texts[sequence].push(f64::from(token));
        ControlFlow::Continue(())
    })?;
    Ok(vec![Produced { name: "generated".into(), shape: vec![batch, max_new_tokens], values: texts.concat() }])
}
