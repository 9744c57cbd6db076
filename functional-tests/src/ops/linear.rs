//! y = x · weightᵀ + bias.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::LinearShape;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, Working};
use crate::error::Result;
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

pub fn modes(case: &Case) -> Vec<Mode> {
    // The wide product has no bias.
    let biased = case.operands().any(|(name, ..)| name == "bias");
    if biased { vec![Mode::Verb] } else { vec![Mode::Verb, Mode::Wide] }
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Config {} = operands.case.config()?;
    let x = operands.any_rank("x")?;
    let inputs = x.channels();
    let outputs = operands.parameter_shape("weight", 2)?[0];
    let rows = x.values.len() / inputs;
    let shape = LinearShape { rows, inputs, outputs };
    let weight = operands.weight(b, "weight", &[outputs, inputs])?;
    let bias = operands.has_parameter("bias").then(|| operands.weight(b, "bias", &[outputs])).transpose()?;
    let input = Guarded::<B, Working>::input(b, "x", &x.values)?;
    let values = if mode == Mode::Wide {
        let mut y = Guarded::<B, Wide>::output(b, "y", rows * outputs)?;
        b.logits(&mut y.buffer, &input.buffer, &weight, shape)?;
        y.read(b)?
    } else {
        let mut y = Guarded::<B, Working>::output(b, "y", rows * outputs)?;
        b.linear(&mut y.buffer, &input.buffer, &weight, bias.as_ref(), shape)?;
        y.read(b)?
    };
    let mut y_shape = x.shape.clone();
    *y_shape.last_mut().expect("x has a dimension") = outputs;
    Ok(Produced::y(&y_shape, values))
}
