//! The next token of every row.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::OUTBOX_ROWS;
use touchstone_runtime::sampling::Sampling;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, cursor, ids};
use crate::error::{Error, Result};
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    seed: u64,
    step: u32,
}

/// Where the cursor stands before, and how far the call moves it: any two numbers that are not each other's.
const PAST: usize = 5;
const ADVANCE: usize = 3;

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Verb]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { temperature, top_k, top_p, seed, step } = operands.case.config()?;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    let logits = operands.input("logits", 2)?;
    let (batch, vocab) = (logits.shape[0], logits.shape[1]);
    let logits = Guarded::<B, Wide>::input(b, "logits", &logits.values)?;
    let mut outbox = b.outbox(OUTBOX_ROWS, batch)?;
    let mut tokens = ids(b, "tokens", &vec![u32::MAX; batch])?;
    let mut cursor = cursor(b, PAST, step)?;
    b.set_sampling(&mut outbox, &sampling)?;
    b.sample(&mut outbox, &mut tokens, &mut cursor, &logits.buffer, batch, vocab, ADVANCE)?;

    let mut taken = Vec::new();
    b.take(&mut outbox, &mut taken)?;
    let tokens = b.read_ids(&tokens, batch)?;
    expect("the outbox", &taken, &tokens)?;
    let moved = [u32::try_from(PAST + ADVANCE).expect("small"), step.wrapping_add(1)];
    expect("the cursor after sampling", &b.read_ids(&cursor, 2)?, &moved)?;
    let values = tokens.into_iter().map(f64::from).collect();
    Ok(vec![Produced { name: "tokens".into(), shape: vec![batch], values }])
}

fn expect(what: &'static str, actual: &[u32], expected: &[u32]) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    Err(Error::SideEffect { what, actual: format!("{actual:?}"), expected: format!("{expected:?}") })
}
