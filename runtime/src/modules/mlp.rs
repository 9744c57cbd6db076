//! The feed-forward network, and the sublayer that holds it.

use super::{Norm, Scratch, join};
use crate::backend::{Backend, LinearShape, Rows};
use crate::error::Result;
use crate::taps::{Tap, tap};
use crate::weights::WeightSource;

/// down(gelu(up(x))), both with bias: `up: [F, C]`, `down: [C, F]`.
pub struct Mlp<B: Backend> {
    /// The module's path, for its taps.
    pub path: String,
    /// C.
    pub channels: usize,
    /// F.
    pub width: usize,
    /// First matrix.
    pub up: B::Weight,
    /// Its bias `[F]`.
    pub up_bias: B::Weight,
    /// Second matrix.
    pub down: B::Weight,
    /// Its bias `[C]`.
    pub down_bias: B::Weight,
}

impl<B: Backend> Mlp<B> {
    /// Loads the weights below `path`.
    ///
    /// # Errors
    /// Those of the source and of the backend's memory.
    pub fn load(
        b: &mut B,
        source: &dyn WeightSource,
        path: &str,
        channels: usize,
        width: usize,
    ) -> Result<Self> {
        let mut load = |name: &str, shape: &[usize]| b.weight(&source.tensor(&join(path, name), shape)?);
        Ok(Self {
            path: path.to_owned(),
            channels,
            width,
            up: load("up.weight", &[width, channels])?,
            up_bias: load("up.bias", &[width])?,
            down: load("down.weight", &[channels, width])?,
            down_bias: load("down.bias", &[channels])?,
        })
    }

    /// scratch.out = down(gelu(up(scratch.normed))).
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn compose(&self, b: &mut B, s: &mut Scratch<B>, rows: usize) -> Result<()> {
        let (channels, width) = (self.channels, self.width);
        let up = LinearShape { rows, inputs: channels, outputs: width };
        let down = LinearShape { rows, inputs: width, outputs: channels };
        b.linear(&mut s.up, &s.normed, &self.up, Some(&self.up_bias), up)?;
        tap(b, &self.path, "up", Tap::Working(&mut s.up), rows * width)?;
        b.gelu(&mut s.gelu, &s.up, rows * width)?;
        tap(b, &self.path, "gelu", Tap::Working(&mut s.gelu), rows * width)?;
        b.linear(&mut s.out, &s.gelu, &self.down, Some(&self.down_bias), down)?;
        tap(b, &self.path, "down", Tap::Working(&mut s.out), rows * channels)
    }
}

/// ln2, the MLP and the residual addition.
pub struct MlpSublayer<B: Backend> {
    /// The block's path, for its taps.
    pub path: String,
    /// The norm in front.
    pub norm: Norm<B>,
    /// The MLP.
    pub mlp: Mlp<B>,
}

impl<B: Backend> MlpSublayer<B> {
    /// Loads `path.ln2` and `path.mlp`.
    ///
    /// # Errors
    /// Those of the source and of the backend's memory.
    pub fn load(
        b: &mut B,
        source: &dyn WeightSource,
        path: &str,
        channels: usize,
        width: usize,
        eps: f64,
    ) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            norm: Norm::load(b, source, &join(path, "ln2"), channels, eps)?,
            mlp: Mlp::load(b, source, &join(path, "mlp"), channels, width)?,
        })
    }

    /// The plain composition of [`Backend::mlp_sublayer`].
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn compose(&self, b: &mut B, x: &mut B::Wide, s: &mut Scratch<B>, rows: usize) -> Result<()> {
        let channels = self.mlp.channels;
        b.layernorm(&mut s.normed, x, &self.norm, Rows::All(rows), channels)?;
        tap(b, &self.path, "ln2", Tap::Working(&mut s.normed), rows * channels)?;
        self.mlp.compose(b, s, rows)?;
        b.add(x, &s.out, rows * channels)?;
        tap(b, &self.path, "add2", Tap::Wide(x), rows * channels)
    }
}
