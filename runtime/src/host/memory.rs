//! What the host backend owns besides parameters: buffers and the outbox.

use std::collections::VecDeque;

use crate::backend::CURSOR_LEN;
use crate::sampling::Sampling;

/// Sampled tokens that nobody has taken yet, oldest first.
pub struct Outbox {
    slots: usize,
    batch: usize,
    tokens: VecDeque<u32>,
    /// Each row's rule of picking.
    pub(super) sampling: Vec<Sampling>,
}

impl Outbox {
    /// An empty outbox with `slots` for rows of `batch` tokens.
    pub(super) fn new(slots: usize, batch: usize) -> Self {
        let sampling = vec![Sampling::GREEDY; batch];
        Self { slots, batch, tokens: VecDeque::with_capacity(batch * slots), sampling }
    }

    /// Adds a row.
    pub(super) fn put(&mut self, row: &[u32]) {
        assert_eq!(row.len(), self.batch, "the outbox was made for rows of {} tokens", self.batch);
        let outstanding = self.tokens.len() / self.batch;
        assert!(outstanding < self.slots, "{outstanding} rows outstanding, at most {} may be", self.slots);
        self.tokens.extend(row);
    }

    /// Moves the oldest row to the end of `tokens`.
    pub(super) fn take(&mut self, tokens: &mut Vec<u32>) {
        assert!(!self.tokens.is_empty(), "no row of tokens is outstanding");
        tokens.extend(self.tokens.drain(..self.batch));
    }
}

/// `past`, `step` and `length` of each of `batch` sequences.
pub(super) fn cursors(cursor: &[u32], batch: usize) -> &[[u32; CURSOR_LEN]] {
    front("cursor", cursor, batch * CURSOR_LEN).as_chunks().0
}

/// The first `len` elements of the operand `name`.
pub(super) fn front<'a, E>(name: &str, buffer: &'a [E], len: usize) -> &'a [E] {
    assert!(len <= buffer.len(), "{name}: {len} elements wanted, {} there", buffer.len());
    &buffer[..len]
}

/// The first `len` elements of the operand `name`, to be written.
pub(super) fn front_mut<'a, E>(name: &str, buffer: &'a mut [E], len: usize) -> &'a mut [E] {
    assert!(len <= buffer.len(), "{name}: {len} elements wanted, {} there", buffer.len());
    &mut buffer[..len]
}
