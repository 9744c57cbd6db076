//! The end of the model: the final norm, and logits from the token embedding's own weight.

use super::{Norm, Scratch};
use crate::backend::{Backend, LinearShape, Rows};
use crate::error::Result;
use crate::taps::{Tap, tap};

/// The final norm and the tied head, borrowed from the model that owns the embedding.
pub struct Head<'a, B: Backend> {
    /// The final norm.
    pub norm: &'a Norm<B>,
    /// `[V, C]`: the token embedding.
    pub token: &'a B::Weight,
    /// C.
    pub channels: usize,
    /// V.
    pub vocab: usize,
}

impl<B: Backend> Head<'_, B> {
    /// The plain composition of [`Backend::head`].
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn compose(
        &self,
        b: &mut B,
        logits: &mut B::Wide,
        x: &B::Wide,
        s: &mut Scratch<B>,
        rows: Rows<'_, B::Ids>,
    ) -> Result<()> {
        let count = rows.count();
        let shape = LinearShape { rows: count, inputs: self.channels, outputs: self.vocab };
        b.layernorm(&mut s.normed, x, self.norm, rows, self.channels)?;
        tap(b, "", "final_norm", Tap::Working(&mut s.normed), count * self.channels)?;
        b.logits(logits, &s.normed, self.token, shape)?;
        tap(b, "", "logits", Tap::Wide(logits), count * self.vocab)
    }
}
