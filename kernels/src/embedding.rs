//! Token plus position embedding.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::check_cursor;

/// As the device code takes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct EmbeddingShape {
    time: u32,
    channels: u32,
    vocab: u32,
    context: u32,
}
const _: () = assert!(size_of::<EmbeddingShape>() == 16);

/// y[b, t] = token[tokens[b, t]] + position[past_b + t]; `y: [B, T, C]`, `tokens: [B, T]`, `token: [V, C]`, `position: [P, C]` or none,
/// `cursor: [B, 3]`. An id or a position outside its table gives a row of NaN.
///
/// # Errors
/// The driver's.
pub fn embedding<E: Element>(
    device: &Device,
    y: &mut Buffer<f32>,
    tokens: &Buffer<u32>,
    token: &Buffer<E>,
    position: Option<&Buffer<E>>,
    cursor: &Buffer<u32>,
    (batch, time): (usize, usize),
    channels: usize,
) -> Result<()> {
    let rows = batch * time;
    assert!(
        y.len() >= rows * channels && tokens.len() >= rows,
        "y {}, tokens {} for {rows} rows",
        y.len(),
        tokens.len()
    );
    check_cursor(cursor, batch);
    let shape = EmbeddingShape {
        time: time as u32,
        channels: channels as u32,
        vocab: (token.len() / channels) as u32,
        context: position.map_or(0, |position| position.len() / channels) as u32,
    };
    let entry = E::pick(Entry::embedding_f32, Entry::embedding_bf16);
    let launch = Launch::new([rows as u32, 1, 1], 128);
    let position = position.map_or(0, Buffer::address);
    let (y, tokens, token, cursor) = (y.address(), tokens.address(), token.address(), cursor.address());
    // SAFETY: embedding_*(float *y, const u32 *tokens, const T *token, const T *position or null, const Cursor *, EmbeddingShape); one
    // block a row, ids and positions are checked against the tables' own sizes on the device; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, tokens, token, position, cursor, shape]) }
}
