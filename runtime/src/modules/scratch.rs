//! The intermediates of one block, allocated once and shared by all blocks.

use crate::backend::Backend;
use crate::error::Result;
use crate::plan::{self, Capacity, Entry};

/// Buffers for the largest pass of the [`Capacity`] they were made for. Letters as in the crate.
pub struct Scratch<B: Backend> {
    /// `[R, C]`: a norm's result.
    pub normed: B::Buf,
    /// `[R, C]`: queries.
    pub q: B::Buf,
    /// `[R, C]`: new keys.
    pub k: B::Buf,
    /// `[R, C]`: new values.
    pub v: B::Buf,
    /// `[R, C]`: attention, heads merged.
    pub core: B::Buf,
    /// `[R, C]`: a sublayer's result, before the residual addition.
    pub out: B::Buf,
    /// `[R, F]`: the MLP before its activation.
    pub up: B::Buf,
    /// `[R, F]`: the MLP after its activation.
    pub gelu: B::Buf,
}

impl<B: Backend> Scratch<B> {
    /// Allocates the buffers of [`plan::scratch`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(b: &mut B, channels: usize, width: usize, capacity: Capacity) -> Result<Self> {
        let entries = plan::scratch(channels, width, capacity);
        let [normed, q, k, v, core, out, up, gelu]: [Entry; 8] =
            entries.try_into().expect("the plan lists the eight scratch buffers");
        Ok(Self {
            normed: b.buf(&normed)?,
            q: b.buf(&q)?,
            k: b.buf(&k)?,
            v: b.buf(&v)?,
            core: b.buf(&core)?,
            out: b.buf(&out)?,
            up: b.buf(&up)?,
            gelu: b.buf(&gelu)?,
        })
    }
}
