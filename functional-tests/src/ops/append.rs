//! cache[b, h, past + t, d] = x[b, t, h·D + d].

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{AttentionShape, Step};

use super::{Mode, Produced};
use crate::buffers::{Guarded, Working, cursor};
use crate::error::Result;
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    past: usize,
}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Verb]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { past } = operands.case.config()?;
    let (cache, x) = (operands.input("cache", 4)?, operands.input("x", 3)?);
    let (batch, heads, context, head_size) = (cache.shape[0], cache.shape[1], cache.shape[2], cache.shape[3]);
    let time = x.shape[1];
    if x.shape != [batch, time, heads * head_size] {
        let problem = format!("is {:?}, expected [{batch}, T, {}]", x.shape, heads * head_size);
        return Err(operands.invalid("x", "shape", problem));
    }
    let shape = AttentionShape { step: Step { batch, time }, heads, head_size, context };
    let mut y = Guarded::<B, Working>::input(b, "cache", &cache.values)?;
    let x = Guarded::<B, Working>::input(b, "x", &x.values)?;
    let cursor = cursor(b, past, shape.step)?;
    b.append(&mut y.buffer, &x.buffer, &cursor, shape)?;
    Ok(Produced::y(&cache.shape, y.read(b)?))
}
