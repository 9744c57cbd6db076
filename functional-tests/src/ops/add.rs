//! y = a + b.

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, Working};
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
    let (left, right) = (operands.any_rank("a")?, operands.any_rank("b")?);
    if left.shape != right.shape {
        let problem = format!("is {:?}, expected {:?} as a", right.shape, left.shape);
        return Err(operands.invalid("b", "shape", problem));
    }
    let mut y = Guarded::<B, Wide>::input(b, "y", &left.values)?;
    let x = Guarded::<B, Working>::input(b, "x", &right.values)?;
    b.add(&mut y.buffer, &x.buffer, left.values.len())?;
    Ok(Produced::y(&left.shape, y.read(b)?))
}
