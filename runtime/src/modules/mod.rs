//! The model's building blocks: their parameters, and how each is composed from verbs.

mod attention;
mod head;
mod mlp;
mod scratch;

pub use attention::{AttentionSublayer, LayerCache, SelfAttention};
pub use head::Head;
pub use mlp::{Mlp, MlpSublayer};
pub use scratch::Scratch;

use crate::backend::Backend;
use crate::error::Result;
use crate::weights::WeightSource;

/// LayerNorm's parameters: `weight` and `bias` `[C]`, and eps.
pub struct Norm<B: Backend> {
    /// Scale.
    pub weight: B::Weight,
    /// Shift.
    pub bias: B::Weight,
    /// Added to the variance inside the root.
    pub eps: f64,
}

impl<B: Backend> Norm<B> {
    /// Loads `path.weight` and `path.bias`.
    ///
    /// # Errors
    /// Those of the source and of the backend's memory.
    pub fn load(b: &mut B, source: &dyn WeightSource, path: &str, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: b.weight(&source.tensor(&format!("{path}.weight"), &[channels])?)?,
            bias: b.weight(&source.tensor(&format!("{path}.bias"), &[channels])?)?,
            eps,
        })
    }
}

/// Joins a module path and a name; the root's path is empty.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
