//! Generation by a committed model, greedy or by a rule of sampling, past the end of its context.

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
    /// How tokens are picked; greedy where there is none.
    sampling: Option<Rule>,
}

/// Of row 0; row `b` has `b` more as its seed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    seed: u64,
}

impl Rule {
    fn of_row(&self, row: u64) -> Sampling {
        let Self { temperature, top_k, top_p, seed } = *self;
        Sampling { temperature, top_k, top_p, seed: seed + row }
    }
}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Fused, Mode::Grid, Mode::Shards, Mode::Steps, Mode::Plain]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { model, model_sha256, max_new_tokens, lengths, sampling } = operands.case.config()?;
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
    let rule = |row| sampling.as_ref().map_or(Sampling::GREEDY, |rule| rule.of_row(row));
    let requests: Vec<_> = rows
        .zip(0..)
        .map(|(prompt, row)| Request { prompt, max_new_tokens, sampling: rule(row) })
        .collect();
    let mut texts = vec![Vec::new(); batch];
    generator.generate(&requests, |sequence, token| {
        texts[sequence].push(f64::from(token));
        ControlFlow::Continue(())
    })?;
    Ok(vec![Produced { name: "generated".into(), shape: vec![batch, max_new_tokens], values: texts.concat() }])
}
