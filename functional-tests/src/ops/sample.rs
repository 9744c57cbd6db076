//! The next token of every row: row b is drawn with seed + b, as pick number step + b.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::OUTBOX_ROWS;
use touchstone_runtime::sampling::Sampling;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, ids, number};
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

/// Where the first row's cursor stands before, and how long its pass is: any two numbers that are not each other's.
const PAST: u32 = 5;
const LENGTH: u32 = 3;

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Verb]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { temperature, top_k, top_p, seed, step } = operands.case.config()?;
    let logits = operands.input("logits", 2)?;
    let (batch, vocab) = (logits.shape[0], logits.shape[1]);
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
