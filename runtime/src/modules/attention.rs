//! Multi-head self-attention, and the sublayer that holds it.

use super::{Norm, Scratch, join};
use crate::backend::{AttentionShape, Backend, LinearShape, Rows};
use crate::error::Result;
use crate::plan::Entry;
use crate::taps::{Tap, tap};
use crate::weights::WeightSource;

/// One block's share of the KV cache: `keys` and `values`, each `[B, H, P, D]`.
pub struct LayerCache<B: Backend> {
    /// Keys.
    pub keys: B::Buf,
    /// Values.
    pub values: B::Buf,
}

impl<B: Backend> LayerCache<B> {
    /// Allocates the two buffers of these entries.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(b: &mut B, keys: &Entry, values: &Entry) -> Result<Self> {
        Ok(Self { keys: b.buf(keys)?, values: b.buf(values)? })
    }
}

/// Causal self-attention: q, k and v without bias, the output projection with one; all weights `[C, C]`.
pub struct SelfAttention<B: Backend> {
    /// The module's path, for its taps.
    pub path: String,
    /// Query projection.
    pub q: B::Weight,
    /// Key projection.
    pub k: B::Weight,
    /// Value projection.
    pub v: B::Weight,
    /// Output projection.
    pub out: B::Weight,
    /// Its bias `[C]`.
    pub out_bias: B::Weight,
}

impl<B: Backend> SelfAttention<B> {
    /// Loads the weights below `path`.
    ///
    /// # Errors
    /// Those of the source and of the backend's memory.
    pub fn load(b: &mut B, source: &dyn WeightSource, path: &str, channels: usize) -> Result<Self> {
        let mut square = |name: &str| {
            b.weight(&source.tensor(&join(path, &format!("{name}.weight")), &[channels, channels])?)
        };
        let (q, k, v, out) = (square("q")?, square("k")?, square("v")?, square("out")?);
        let out_bias = b.weight(&source.tensor(&join(path, "out.bias"), &[channels])?)?;
        Ok(Self { path: path.to_owned(), q, k, v, out, out_bias })
    }

    /// scratch.out = attention of scratch.normed, appending to the cache.
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn compose(
        &self,
        b: &mut B,
        cache: &mut LayerCache<B>,
        s: &mut Scratch<B>,
        cursor: &B::Ids,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, channels) = (shape.step.rows(), shape.channels());
        let len = rows * channels;
        let square = LinearShape { rows, inputs: channels, outputs: channels };
        b.linear(&mut s.q, &s.normed, &self.q, None, square)?;
        tap(b, &self.path, "q", Tap::Working(&mut s.q), len)?;
        b.linear(&mut s.k, &s.normed, &self.k, None, square)?;
        tap(b, &self.path, "k", Tap::Working(&mut s.k), len)?;
        b.linear(&mut s.v, &s.normed, &self.v, None, square)?;
        tap(b, &self.path, "v", Tap::Working(&mut s.v), len)?;
        b.append(&mut cache.keys, &s.k, cursor, shape)?;
        b.append(&mut cache.values, &s.v, cursor, shape)?;
        b.attention(&mut s.core, &s.q, &cache.keys, &cache.values, cursor, shape)?;
        tap(b, &self.path, "core", Tap::Working(&mut s.core), len)?;
        b.linear(&mut s.out, &s.core, &self.out, Some(&self.out_bias), square)?;
        tap(b, &self.path, "out", Tap::Working(&mut s.out), len)
    }
}

/// ln1, attention and the residual addition.
pub struct AttentionSublayer<B: Backend> {
    /// The block's path, for its taps.
    pub path: String,
    /// The norm in front.
    pub norm: Norm<B>,
    /// The attention.
    pub attention: SelfAttention<B>,
}

impl<B: Backend> AttentionSublayer<B> {
    /// Loads `path.ln1` and `path.attention`.
    ///
    /// # Errors
    /// Those of the source and of the backend's memory.
    pub fn load(b: &mut B, source: &dyn WeightSource, path: &str, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            norm: Norm::load(b, source, &join(path, "ln1"), channels, eps)?,
            attention: SelfAttention::load(b, source, &join(path, "attention"), channels)?,
        })
    }

    /// The plain composition of [`Backend::attention_sublayer`].
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn compose(
        &self,
        b: &mut B,
        x: &mut B::Wide,
        cache: &mut LayerCache<B>,
        s: &mut Scratch<B>,
        cursor: &B::Ids,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, channels) = (shape.step.rows(), shape.channels());
        b.layernorm(&mut s.normed, x, &self.norm, Rows::All(rows), channels)?;
        tap(b, &self.path, "ln1", Tap::Working(&mut s.normed), rows * channels)?;
        self.attention.compose(b, cache, s, cursor, shape)?;
        b.add(x, &s.out, rows * channels)?;
        tap(b, &self.path, "add1", Tap::Wide(x), rows * channels)
    }
}
