//! y = token[tokens] + position[past + t].

use serde::Deserialize;
use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::Step;

use super::{Mode, Produced};
use crate::buffers::{Guarded, Wide, cursor, ids};
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
    let (tokens, [batch, time]) = operands.tokens("tokens")?;
    let table = operands.parameter_shape("token.weight", 2)?;
    let channels = table[1];
    let token = operands.weight(b, "token.weight", table)?;
    let position = if operands.has_parameter("position.weight") {
        let context = operands.parameter_shape("position.weight", 2)?[0];
        Some(operands.weight(b, "position.weight", &[context, channels])?)
    } else {
        None
    };
    let tokens = ids(b, "tokens", &tokens)?;
    let step = Step { batch, time };
    let cursor = cursor(b, past, step)?;
    let mut y = Guarded::<B, Wide>::output(b, "y", batch * time * channels)?;
    b.embedding(&mut y.buffer, &tokens, &token, position.as_ref(), &cursor, step, channels)?;
    Ok(Produced::y(&[batch, time, channels], y.read(b)?))
}
