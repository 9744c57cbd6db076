//! LayerNorm over the last dimension.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{Rows, Step};
use touchstone_runtime::modules::Norm;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, Working, ids, number};
use crate::error::Result;
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    eps: f64,
}

pub fn modes(case: &Case) -> Vec<Mode> {
    let strided = case.operands().any(|(name, _, x)| name == "x" && x.shape.len() == 3 && x.shape[1] > 1);
    if strided { vec![Mode::Verb, Mode::Strided] } else { vec![Mode::Verb] }
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Config { eps } = operands.case.config()?;
    let x = operands.any_rank("x")?;
    let channels = x.channels();
    let norm = Norm {
        weight: operands.weight(b, "weight", &[channels])?,
        bias: operands.weight(b, "bias", &[channels])?,
        eps,
    };
    let input = Guarded::<B, Wide>::input(b, "x", &x.values)?;
    if mode == Mode::Strided {
        let values = strided(b, &input, &norm, &x.shape)?;
        return Ok(Produced::y(&x.shape, values));
    }
    let mut y = Guarded::<B, Working>::output(b, "y", x.values.len())?;
    b.layernorm(&mut y.buffer, &input.buffer, &norm, Rows::All(x.values.len() / channels), channels)?;
    Ok(Produced::y(&x.shape, y.read(b)?))
}

/// The positions of x `[B, T, C]`, one of each sequence a call, put together again. No two sequences are at the same one.
fn strided<B: Backend>(b: &mut B, x: &Guarded<B, Wide>, norm: &Norm<B>, shape: &[usize]) -> Result<Vec<f64>> {
    let (batch, time, channels) = (shape[0], shape[1], shape[2]);
    let mut whole = vec![f64::NAN; batch * time * channels];
    for position in 0..time {
        let place = |sequence: usize| (position + sequence) % time;
        let cursors: Vec<_> = (0..batch).map(|sequence| [7, 5, number(place(sequence) + 1)]).collect();
        let cursor = ids(b, "cursor", cursors.as_flattened())?;
        let rows = Rows::Last { step: Step { batch, time }, cursor: &cursor };
        let mut y = Guarded::<B, Working>::output(b, "y", batch * channels)?;
        b.layernorm(&mut y.buffer, &x.buffer, norm, rows, channels)?;
        for (sequence, row) in y.read(b)?.chunks_exact(channels).enumerate() {
            let start = (sequence * time + place(sequence)) * channels;
            whole[start..start + channels].copy_from_slice(row);
        }
    }
    Ok(whole)
}
