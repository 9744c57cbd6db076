//! Picking the next token on the device.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::entry::Entry;
use crate::error::Result;
use crate::outbox::Outbox;
use crate::shape::check_cursor;

/// As the device code takes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct SampleShape {
    vocab: u32,
    slots: u32,
}
const _: () = assert!(size_of::<SampleShape>() == 8);

/// Logits that a block of 256 threads holds in registers.
const HELD_MAX: usize = 4 * 256;

/// Picks a token a row of `logits: [B, V]` by the row's rule of the outbox, writes it to `tokens: [B]` and the outbox, and advances each
/// sequence's cursor: past by its length, step by 1; the next pass has a length of 1. `cursor: [B, 3]`.
///
/// # Errors
/// The driver's.
pub fn sample(
    device: &Device,
    outbox: &mut Outbox,
    tokens: &mut Buffer<u32>,
    cursor: &mut Buffer<u32>,
    logits: &Buffer<f32>,
    vocab: usize,
) -> Result<()> {
    let batch = outbox.batch();
    assert!(
        logits.len() >= batch * vocab && tokens.len() >= batch,
        "logits {}, tokens {}",
        logits.len(),
        tokens.len()
    );
    check_cursor(cursor, batch);
    let shape = SampleShape { vocab: vocab as u32, slots: outbox.slots() };
    let (entry, threads) =
        if vocab <= HELD_MAX { (Entry::sample_f32, 256) } else { (Entry::sample_wide_f32, 1024) };
    let launch = Launch::new([batch as u32, 1, 1], threads);
    let (ring, state) = (outbox.address(), outbox.state.address());
    let (tokens, cursor, logits) = (tokens.address(), cursor.address(), logits.address());
    // SAFETY: both take (volatile u64 *outbox, OutboxState *, u32 *tokens, Cursor *, const float *logits, SampleShape); one block a row of
    // `batch`, ring slots are taken modulo `slots`, lengths as above; the caller owns all buffers, and the outbox waits for the
    // stream before it frees the ring.
    unsafe { device.launch(entry, launch, arguments![ring, state, tokens, cursor, logits, shape]) }
}
