//! y = x · Φ(x).

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Working};
use crate::error::Result;
use crate::operands::Operands;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

pub fn modes(_: &Case) -> Vec<Mode> {
    vec![Mode::Verb]
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, _: Mode) -> Result<Vec<Produced>> {
    let Config {} = operands.case.config()?;
    let x = operands.any_rank("x")?;
    let len = x.values.len();
    let input = Guarded::<B, Working>::input(b, "x", &x.values)?;
    let mut y = Guarded::<B, Working>::output(b, "y", len)?;
    b.gelu(&mut y.buffer, &input.buffer, len)?;
    Ok(Produced::y(&x.shape, y.read(b)?))
}
