//! The attention module: projections, causal attention, output projection.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{AttentionShape, Step};
use touchstone_runtime::modules::SelfAttention;

use super::{Mode, Produced, module_modes};
use crate::buffers::cursor;
use crate::error::Result;
use crate::operands::Operands;
use crate::ops::parts::{poisoned_cache, poisoned_scratch, with_taps};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    heads: usize,
}

pub fn modes(case: &Case) -> Vec<Mode> {
    module_modes(case, false)
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Config { heads } = operands.case.config()?;
    let x = operands.input("x", 3)?;
    let (batch, time, channels) = (x.shape[0], x.shape[1], x.shape[2]);
    let head_size = super::head_size(operands.case, channels, heads)?;
    let step = Step { batch, time };
    let shape = AttentionShape { step, heads, head_size, context: time + 3 };
    let module = SelfAttention::load(b, operands, "", channels)?;
    let mut cache = poisoned_cache(b, shape)?;
    let mut scratch = poisoned_scratch(b, channels, 1, step)?;
    let cursor = cursor(b, 0, shape.step)?;
    b.write(&mut scratch.normed, &x.values)?;
    with_taps(b, operands.case, "out", 1, mode, |b| {
        Ok(module.compose(b, &mut cache, &mut scratch, &cursor, shape)?)
    })
}
