//! One block: x + attention(ln1(x)), then + mlp(ln2(·)).

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{AttentionShape, Step};
use touchstone_runtime::modules::{AttentionSublayer, MlpSublayer};

use super::{Mode, Produced, module_modes};
use crate::buffers::{Guarded, Wide, cursor};
use crate::error::Result;
use crate::operands::Operands;
use crate::ops::parts::{poisoned_cache, poisoned_scratch, with_taps};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    heads: usize,
    eps: f64,
}

pub fn modes(case: &Case) -> Vec<Mode> {
    module_modes(case, true)
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Config { heads, eps } = operands.case.config()?;
    let x = operands.input("x", 3)?;
    let (batch, time, channels) = (x.shape[0], x.shape[1], x.shape[2]);
    let head_size = super::head_size(operands.case, channels, heads)?;
    let width = operands.parameter_shape("mlp.up.weight", 2)?[0];
    let step = Step { batch, time };
    let shape = AttentionShape { step, heads, head_size, context: time + 3 };
    let attention = AttentionSublayer::load(b, operands, "", channels, eps)?;
    let mlp = MlpSublayer::load(b, operands, "", channels, width, eps)?;
    let mut cache = poisoned_cache(b, shape)?;
    let mut scratch = poisoned_scratch(b, channels, width, step)?;
    let cursor = cursor(b, 0, shape.step)?;
    let mut residual = Guarded::<B, Wide>::input(b, "x", &x.values)?;
    let mut forward = |b: &mut B| {
        b.attention_sublayer(&mut residual.buffer, &attention, &mut cache, &mut scratch, &cursor, shape)?;
        Ok(b.mlp_sublayer(&mut residual.buffer, &mlp, &mut scratch, step.rows())?)
    };
    if mode == Mode::Fused {
        forward(b)?;
        return Ok(Produced::y(&x.shape, residual.read(b)?));
    }
    with_taps(b, operands.case, "add2", 1, mode, forward)
}
