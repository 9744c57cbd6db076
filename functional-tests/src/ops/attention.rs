//! Causal attention over a cache.

use serde::Deserialize;
use touchstone_golden::{Case, Tensor};
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{AttentionShape, Step};

use super::{Mode, Produced};
use crate::buffers::{Guarded, UNUSED, Working, cursor};
use crate::error::Result;
use crate::operands::Operands;

/// Positions of the cache behind the last one used.
const SPARE_POSITIONS: usize = 5;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    heads: usize,
    past: usize,
}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Verb]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config { heads, past } = operands.case.config()?;
    let (q, k, v) = (operands.input("q", 3)?, operands.input("k", 3)?, operands.input("v", 3)?);
    let (batch, time, channels) = (q.shape[0], q.shape[1], q.shape[2]);
    let head_size = super::head_size(operands.case, channels, heads)?;
    let positions = past.saturating_add(time);
    for (name, tensor) in [("k", k), ("v", v)] {
        if tensor.shape != [batch, positions, channels] {
            let problem = format!("is {:?}, expected {:?}", tensor.shape, [batch, positions, channels]);
            return Err(operands.invalid(name, "shape", problem));
        }
    }
    let context = positions + SPARE_POSITIONS;
    let shape = AttentionShape { step: Step { batch, time }, heads, head_size, context };
    let input = Guarded::<B, Working>::input(b, "q", &q.values)?;
    let keys = Guarded::<B, Working>::input(b, "keys", &as_cache(k, shape))?;
    let values = Guarded::<B, Working>::input(b, "values", &as_cache(v, shape))?;
    let cursor = cursor(b, past, shape.step)?;
    let mut y = Guarded::<B, Working>::output(b, "y", q.values.len())?;
    b.attention(&mut y.buffer, &input.buffer, &keys.buffer, &values.buffer, &cursor, shape)?;
    Ok(Produced::y(&q.shape, y.read(b)?))
}

/// x `[B, S, C]` as a cache `[B, H, P, D]`, unused positions huge. Done here and not by `append`, whose faults would show as attention's.
fn as_cache(x: &Tensor, shape: AttentionShape) -> Vec<f64> {
    let AttentionShape { heads, head_size, context, .. } = shape;
    let mut cache = vec![UNUSED; shape.cache_len()];
    for (row, x) in x.values.chunks_exact(shape.channels()).enumerate() {
        let (sequence, position) = (row / x_positions(shape), row % x_positions(shape));
        for (head, x) in x.chunks_exact(head_size).enumerate() {
            let start = ((sequence * heads + head) * context + position) * head_size;
            cache[start..start + head_size].copy_from_slice(x);
        }
    }
    cache
}

/// S: the positions that hold something.
fn x_positions(shape: AttentionShape) -> usize {
    shape.context - SPARE_POSITIONS
}
