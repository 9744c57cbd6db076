//! The host backend: where there is no GPU, and, in float64, the oracle.

mod add;
mod append;
mod attention;
mod dot;
mod embedding;
mod float;
mod fused;
mod gelu;
mod lanes;
mod layernorm;
mod linear;
mod memory;
mod sample;
#[cfg(test)]
mod tests;
mod weight;

pub use float::Float;
pub use memory::Outbox;
pub use weight::Weight;

use std::convert::Infallible;

use crate::backend::{AttentionShape, Backend, CURSOR_LEN, DecodeState, LinearShape, Rows, Step, Weights};
use crate::error::Result;
use crate::modules::{AttentionSublayer, LayerCache, MlpSublayer, Norm, Scratch};
use crate::plan::{Entry, Precision};
use crate::sampling::Sampling;
use crate::taps::Taps;
use crate::weights::Tensor;
use memory::{front, front_mut};

/// Computes on the CPU, in `T`: f32 for use, f64 as the oracle that the golden truths are compared with.
pub struct Host<T> {
    taps: Taps,
    arch: pulp::Arch,
    /// Candidates of one row of logits; as long as the longest row of any wide buffer.
    candidates: Vec<sample::Candidate>,
    precision: std::marker::PhantomData<T>,
}

impl<T: Float> Host<T> {
    /// A backend without buffers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            taps: Taps::default(),
            arch: pulp::Arch::new(),
            candidates: Vec::new(),
            precision: std::marker::PhantomData,
        }
    }
}

impl<T: Float> Default for Host<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Float> Backend for Host<T> {
    type Buf = Vec<T>;
    type Wide = Vec<T>;
    type Weight = Weight<T>;
    type Ids = Vec<u32>;
    type Outbox = Outbox;
    type Recording = ();
    /// The host computes while it is called: to run many steps at once gains nothing.
    type Decoder = Infallible;

    fn precision(&self) -> Precision {
        T::PRECISION
    }

    fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }

    fn buf(&mut self, entry: &Entry) -> Result<Vec<T>> {
        Ok(vec![T::ZERO; entry.elements()])
    }

    fn wide(&mut self, entry: &Entry) -> Result<Vec<T>> {
        // Any wide buffer may hold logits; room for its rows is made now, because sampling must not allocate.
        self.candidates.reserve(entry.shape.last().copied().unwrap_or(1));
        Ok(vec![T::ZERO; entry.elements()])
    }

    fn ids(&mut self, entry: &Entry) -> Result<Vec<u32>> {
        Ok(vec![0; entry.elements()])
    }

    fn weight(&mut self, tensor: &Tensor<'_>) -> Result<Weight<T>> {
        Ok(Weight::new(tensor))
    }

    fn outbox(&mut self, slots: usize, batch: usize) -> Result<Outbox> {
        Ok(Outbox::new(slots, batch))
    }

    fn write(&mut self, y: &mut Vec<T>, values: &[f64]) -> Result<()> {
        for (y, &value) in front_mut("write: y", y, values.len()).iter_mut().zip(values) {
            *y = T::from_f64(value);
        }
        Ok(())
    }

    fn read(&mut self, x: &Vec<T>, len: usize) -> Result<Vec<f64>> {
        Ok(front("read: x", x, len).iter().map(|x| x.to_f64()).collect())
    }

    fn write_wide(&mut self, y: &mut Vec<T>, values: &[f64]) -> Result<()> {
        self.write(y, values)
    }

    fn read_wide(&mut self, x: &Vec<T>, len: usize) -> Result<Vec<f64>> {
        self.read(x, len)
    }

    fn write_ids(&mut self, y: &mut Vec<u32>, values: &[u32]) -> Result<()> {
        front_mut("write_ids: y", y, values.len()).copy_from_slice(values);
        Ok(())
    }

    fn read_ids(&mut self, x: &Vec<u32>, len: usize) -> Result<Vec<u32>> {
        Ok(front("read_ids: x", x, len).to_vec())
    }

    fn embedding(
        &mut self,
        y: &mut Vec<T>,
        tokens: &Vec<u32>,
        token: &Weight<T>,
        position: Option<&Weight<T>>,
        cursor: &Vec<u32>,
        step: Step,
        channels: usize,
    ) -> Result<()> {
        embedding::embedding(y, tokens, token, position, cursor, step, channels);
        Ok(())
    }

    fn layernorm(
        &mut self,
        y: &mut Vec<T>,
        x: &Vec<T>,
        norm: &Norm<Self>,
        rows: Rows<'_, Vec<u32>>,
        channels: usize,
    ) -> Result<()> {
        layernorm::layernorm(self.arch, y, x, norm, rows, channels);
        Ok(())
    }

    fn linear(
        &mut self,
        y: &mut Vec<T>,
        x: &Vec<T>,
        weight: &Weight<T>,
        bias: Option<&Weight<T>>,
        shape: LinearShape,
    ) -> Result<()> {
        linear::linear(self.arch, y, x, weight, bias, shape);
        Ok(())
    }

    fn logits(&mut self, y: &mut Vec<T>, x: &Vec<T>, weight: &Weight<T>, shape: LinearShape) -> Result<()> {
        linear::linear(self.arch, y, x, weight, None, shape);
        Ok(())
    }

    fn gelu(&mut self, y: &mut Vec<T>, x: &Vec<T>, len: usize) -> Result<()> {
        gelu::gelu(self.arch, front_mut("gelu: y", y, len), front("gelu: x", x, len));
        Ok(())
    }

    fn add(&mut self, y: &mut Vec<T>, x: &Vec<T>, len: usize) -> Result<()> {
        add::add(front_mut("add: y", y, len), front("add: x", x, len));
        Ok(())
    }

    fn append(
        &mut self,
        cache: &mut Vec<T>,
        x: &Vec<T>,
        cursor: &Vec<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        append::append(cache, x, cursor, shape);
        Ok(())
    }

    fn attention(
        &mut self,
        y: &mut Vec<T>,
        q: &Vec<T>,
        keys: &Vec<T>,
        values: &Vec<T>,
        cursor: &Vec<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        attention::attention(self.arch, y, q, keys, values, cursor, shape);
        Ok(())
    }

    fn set_sampling(&mut self, outbox: &mut Outbox, sampling: &[Sampling]) -> Result<()> {
        outbox.sampling.copy_from_slice(sampling);
        Ok(())
    }

    fn sample(
        &mut self,
        outbox: &mut Outbox,
        tokens: &mut Vec<u32>,
        cursor: &mut Vec<u32>,
        logits: &Vec<T>,
        batch: usize,
        vocab: usize,
    ) -> Result<()> {
        let logits = front("sample: logits", logits, batch * vocab);
        let tokens = front_mut("sample: tokens", tokens, batch);
        let (cursors, _) = front_mut("sample: cursor", cursor, batch * CURSOR_LEN).as_chunks_mut();
        let rows = tokens.iter_mut().zip(logits.chunks_exact(vocab)).zip(&outbox.sampling).zip(cursors);
        for (((token, logits), sampling), [past, step, length]) in rows {
            *token = sample::pick(logits, sampling, *step, &mut self.candidates);
            (*past, *step, *length) = (*past + *length, *step + 1, 1);
        }
        outbox.put(tokens);
        Ok(())
    }

    fn take(&mut self, outbox: &mut Outbox, tokens: &mut Vec<u32>) -> Result<()> {
        outbox.take(tokens);
        Ok(())
    }

    fn repeat(&mut self, (): &mut (), mut body: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        body(self)
    }

    fn decode_stride(decoder: &Infallible) -> usize {
        match *decoder {}
    }

    fn decode(
        &mut self,
        decoder: &mut Infallible,
        _: &Weights<Self>,
        _: DecodeState<'_, Self>,
        _: usize,
    ) -> Result<()> {
        match *decoder {}
    }

    fn attention_sublayer(
        &mut self,
        x: &mut Vec<T>,
        sublayer: &AttentionSublayer<Self>,
        cache: &mut LayerCache<Self>,
        scratch: &mut Scratch<Self>,
        cursor: &Vec<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        if self.taps.plain() || shape.step.rows() > 1 {
            return sublayer.compose(self, x, cache, scratch, cursor, shape);
        }
        fused::attention_sublayer(self, x, sublayer, cache, scratch, cursor, shape)
    }

    fn mlp_sublayer(
        &mut self,
        x: &mut Vec<T>,
        sublayer: &MlpSublayer<Self>,
        scratch: &mut Scratch<Self>,
        rows: usize,
    ) -> Result<()> {
        if self.taps.plain() || rows > 1 {
            return sublayer.compose(self, x, scratch, rows);
        }
        fused::mlp_sublayer(self, x, sublayer, scratch)
    }
}
