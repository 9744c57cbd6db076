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
}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Fused, Mode::Steps, Mode::Plain]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { model, model_sha256, max_new_tokens } = operands.case.config()?;
    let checkpoint = operands.checkpoint(&Trained { model, model_sha256 })?;
    let (prompt, [batch, _]) = operands.tokens("tokens")?;
    let config = checkpoint.config();
    let mut model = Model::new(b, config, &checkpoint, capacity(config.max_position_embeddings, batch))?;
    let mut generator = Generator::new(b, &mut model, batch, LOOKAHEAD);
    let request = Request { prompt: &prompt, max_new_tokens, sampling: Sampling::GREEDY };
    let mut steps: Vec<Vec<u32>> = Vec::new();
    generator.generate(&request, |tokens| {
        steps.push(tokens.to_vec());
        ControlFlow::Continue(())
    })?;
    let values = (0..batch).flat_map(|row| steps.iter().map(move |step| f64::from(step[row]))).collect();
    Ok(vec![Produced { name: "generated".into(), shape: vec![batch, steps.len()], values }])
}
