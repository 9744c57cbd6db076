//! The MLP module: down(gelu(up(x))).

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::Step;
use touchstone_runtime::modules::Mlp;

use super::{Mode, Produced, module_modes};
use crate::error::Result;
use crate::operands::Operands;
use crate::ops::parts::{poisoned_scratch, with_taps};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

pub fn modes(case: &Case) -> Vec<Mode> {
    module_modes(case, false)
}

pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
    let Config {} = operands.case.config()?;
    let x = operands.any_rank("x")?;
    let (channels, rows) = (x.channels(), x.values.len() / x.channels());
    let width = operands.parameter_shape("up.weight", 2)?[0];
    let module = Mlp::load(b, operands, "", channels, width)?;
    let mut scratch = poisoned_scratch(b, channels, width, Step { batch: 1, time: rows })?;
    b.write(&mut scratch.normed, &x.values)?;
    with_taps(b, operands.case, "down", 1, mode, |b| Ok(module.compose(b, &mut scratch, rows)?))
}
