//! Token and position embedding.

use super::memory::{cursors, front, front_mut};
use super::{Float, Weight};
use crate::backend::Step;

/// y[b, t] = token[tokens[b, t]] + position[past_b + t]; a row of NaN for an id or a position that the tables lack.
///
/// `y: [B, T, C]`, `tokens: [B, T]`, `token: [V, C]`, `position: [P, C]` or none, `cursor: [B, 3]`.
pub(super) fn embedding<T: Float>(
    y: &mut [T],
    tokens: &[u32],
    token: &Weight<T>,
    position: Option<&Weight<T>>,
    cursor: &[u32],
    step: Step,
    channels: usize,
) {
    assert_eq!(token.columns(), channels, "embedding: columns of the token table");
    if let Some(position) = position {
        assert_eq!(position.columns(), channels, "embedding: columns of the position table");
    }
    let y = front_mut("embedding: y", y, step.rows() * channels);
    let cursors = cursors(cursor, step.batch);
    let tokens = front("embedding: tokens", tokens, step.rows());
    for (row, (y, &id)) in y.chunks_exact_mut(channels).zip(tokens).enumerate() {
        let (id, past) = (id as usize, cursors[row / step.time][0] as usize);
        let place = past + row % step.time;
        let known = id < token.rows() && position.is_none_or(|position| place < position.rows());
        for (channel, y) in y.iter_mut().enumerate() {
            *y = match position {
                _ if !known => T::from_f64(f64::NAN),
                None => token.get(id, channel),
                Some(position) => token.get(id, channel) + position.get(place, channel),
            };
        }
    }
}
