//! The verbs, each handed to its launcher.

use touchstone_kernels::{
    self as kernels, Buffer, CacheShape, Element, Graph, NormQkvWeights, NormShape, Outbox,
};

use super::{Cuda, decoder, memory};
use crate::backend::{AttentionShape, Backend, DecodeState, LinearShape, Rows, Step, Weights};
use crate::config::Config;
use crate::error::Result;
use crate::modules::{AttentionSublayer, Head, LayerCache, MlpSublayer, Norm, Scratch};
use crate::plan::{Capacity, Entry, Precision};
use crate::sampling::Sampling;
use crate::taps::Taps;
use crate::weights::Tensor;

/// The longest pass, in rows, that the fused kernels serve.
const FUSED_ROWS_MAX: usize = 32;
/// More rows than these, and values in them from so many on, go through tensor cores where there are: the fused kernels read each weight
/// once a row.
const TENSOR_ROWS_ABOVE: usize = 8;
const TENSOR_VALUES_MIN: usize = 2560;

impl<E: Element> Cuda<E> {
    /// Whether a pass of `rows` rows of `channels` goes through the fused kernels.
    fn fuses(&self, rows: usize, channels: usize, width: usize) -> bool {
        let aligned = channels.is_multiple_of(4) && width.is_multiple_of(4);
        !self.taps.plain() && rows <= FUSED_ROWS_MAX && aligned && channels <= kernels::ROW_MAX
    }

    /// Whether a pass of `rows` rows of `channels`, `width` inside, goes through tensor cores.
    fn tensor_cores(&self, rows: usize, channels: usize, width: usize) -> bool {
        let many = rows > FUSED_ROWS_MAX || rows > TENSOR_ROWS_ABOVE && rows * channels >= TENSOR_VALUES_MIN;
        !self.taps.plain() && many && kernels::tensor_cores::<E>(&self.device, channels, width)
    }

    /// [`Backend::attention_sublayer`] for many rows: four launches, of which the projections append to the cache and the last adds to x.
    fn attention_tensor(
        &mut self,
        x: &mut Buffer<f32>,
        sublayer: &AttentionSublayer<Self>,
        cache: &mut LayerCache<Self>,
        s: &mut Scratch<Self>,
        cursor: &Buffer<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, channels, attention) = (shape.step.rows(), shape.channels(), &sublayer.attention);
        self.layernorm(&mut s.normed, x, &sublayer.norm, Rows::All(rows), channels)?;
        let LayerCache { keys, values } = cache;
        let projections = [&attention.q, &attention.k, &attention.v];
        kernels::qkv(
            &self.device,
            &mut s.q,
            keys,
            values,
            &s.normed,
            projections,
            cursor,
            cache_shape(shape),
        )?;
        self.attention(&mut s.core, &s.q, keys, values, cursor, shape)?;
        let square = linear_shape(LinearShape { rows, inputs: channels, outputs: channels });
        Ok(kernels::linear_add_many(&self.device, x, &s.core, &attention.out, &attention.out_bias, square)?)
    }

    /// [`Backend::mlp_sublayer`] for many rows: three launches, of which the second ends with the activation and the last adds to x.
    fn mlp_tensor(
        &mut self,
        x: &mut Buffer<f32>,
        sublayer: &MlpSublayer<Self>,
        s: &mut Scratch<Self>,
        rows: usize,
    ) -> Result<()> {
        let mlp = &sublayer.mlp;
        let (up, down) = (
            LinearShape { rows, inputs: mlp.channels, outputs: mlp.width },
            LinearShape { rows, inputs: mlp.width, outputs: mlp.channels },
        );
        self.layernorm(&mut s.normed, x, &sublayer.norm, Rows::All(rows), mlp.channels)?;
        kernels::linear_gelu(&self.device, &mut s.gelu, &s.normed, &mlp.up, &mlp.up_bias, linear_shape(up))?;
        Ok(kernels::linear_add_many(&self.device, x, &s.gelu, &mlp.down, &mlp.down_bias, linear_shape(down))?)
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).expect("dimensions fit u32")
}

fn cache_shape(shape: AttentionShape) -> CacheShape {
    CacheShape {
        batch: number(shape.step.batch),
        time: number(shape.step.time),
        heads: number(shape.heads),
        head_size: number(shape.head_size),
        context: number(shape.context),
    }
}

fn linear_shape(shape: LinearShape) -> kernels::LinearShape {
    kernels::LinearShape {
        rows: number(shape.rows),
        inputs: number(shape.inputs),
        outputs: number(shape.outputs),
    }
}

/// The shape of a norm over `rows`, and the cursor that picks them.
fn norm_shape(rows: Rows<'_, Buffer<u32>>, columns: usize, eps: f64) -> (NormShape, Option<&Buffer<u32>>) {
    let (time, cursor) = match rows {
        Rows::All(_) => (1, None),
        Rows::Last { step, cursor } => (step.time, Some(cursor)),
    };
    let (count, time, columns) = (number(rows.count()), number(time), number(columns));
    (NormShape { count, time, columns, eps: eps as f32 }, cursor)
}

impl<E: Element> Backend for Cuda<E> {
    type Buf = Buffer<E>;
    type Wide = Buffer<f32>;
    type Weight = Buffer<E>;
    type Ids = Buffer<u32>;
    type Outbox = Outbox;
    type Recording = Option<Graph>;
    type Decoder = kernels::Decoder<E>;

    fn precision(&self) -> Precision {
        Precision { name: E::NAME, working_bytes: size_of::<E>(), wide_bytes: 4 }
    }

    fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }

    fn buf(&mut self, entry: &Entry) -> Result<Buffer<E>> {
        self.zeroed(entry)
    }

    fn wide(&mut self, entry: &Entry) -> Result<Buffer<f32>> {
        self.zeroed(entry)
    }

    fn ids(&mut self, entry: &Entry) -> Result<Buffer<u32>> {
        self.zeroed(entry)
    }

    fn weight(&mut self, tensor: &Tensor<'_>) -> Result<Buffer<E>> {
        self.upload_weight(tensor)
    }

    fn outbox(&mut self, slots: usize, batch: usize) -> Result<Outbox> {
        Ok(Outbox::new(self.device(), slots, batch)?)
    }

    fn decoder_plan(&mut self, config: &Config, capacity: Capacity) -> Result<Vec<Entry>> {
        Ok(self.decoder_kernels(config, capacity)?.map_or_else(Vec::new, |found| decoder::plan::<E>(&found)))
    }

    fn decoder(
        &mut self,
        config: &Config,
        weights: &Weights<Self>,
        capacity: Capacity,
    ) -> Result<Option<kernels::Decoder<E>>> {
        self.make_decoder(config, weights, capacity)
    }

    fn write(&mut self, y: &mut Buffer<E>, values: &[f64]) -> Result<()> {
        memory::write(y, values)
    }

    fn read(&mut self, x: &Buffer<E>, len: usize) -> Result<Vec<f64>> {
        memory::read(x, len)
    }

    fn write_wide(&mut self, y: &mut Buffer<f32>, values: &[f64]) -> Result<()> {
        memory::write(y, values)
    }

    fn read_wide(&mut self, x: &Buffer<f32>, len: usize) -> Result<Vec<f64>> {
        memory::read(x, len)
    }

    fn write_ids(&mut self, y: &mut Buffer<u32>, values: &[u32]) -> Result<()> {
        Ok(y.write(values)?)
    }

    fn read_ids(&mut self, x: &Buffer<u32>, len: usize) -> Result<Vec<u32>> {
        Ok(x.read(len)?)
    }

    fn embedding(
        &mut self,
        y: &mut Buffer<f32>,
        tokens: &Buffer<u32>,
        token: &Buffer<E>,
        position: Option<&Buffer<E>>,
        cursor: &Buffer<u32>,
        step: Step,
        channels: usize,
    ) -> Result<()> {
        let pass = (step.batch, step.time);
        Ok(kernels::embedding(&self.device, y, tokens, token, position, cursor, pass, channels)?)
    }

    fn layernorm(
        &mut self,
        y: &mut Buffer<E>,
        x: &Buffer<f32>,
        norm: &Norm<Self>,
        rows: Rows<'_, Buffer<u32>>,
        channels: usize,
    ) -> Result<()> {
        let (shape, cursor) = norm_shape(rows, channels, norm.eps);
        Ok(kernels::layernorm(&self.device, y, x, &norm.weight, &norm.bias, cursor, shape)?)
    }

    fn linear(
        &mut self,
        y: &mut Buffer<E>,
        x: &Buffer<E>,
        weight: &Buffer<E>,
        bias: Option<&Buffer<E>>,
        shape: LinearShape,
    ) -> Result<()> {
        Ok(kernels::linear(&self.device, y, x, weight, bias, linear_shape(shape))?)
    }

    fn logits(
        &mut self,
        y: &mut Buffer<f32>,
        x: &Buffer<E>,
        weight: &Buffer<E>,
        shape: LinearShape,
    ) -> Result<()> {
        Ok(kernels::logits(&self.device, y, x, weight, linear_shape(shape))?)
    }

    fn gelu(&mut self, y: &mut Buffer<E>, x: &Buffer<E>, len: usize) -> Result<()> {
        Ok(kernels::gelu(&self.device, y, x, len)?)
    }

    fn add(&mut self, y: &mut Buffer<f32>, x: &Buffer<E>, len: usize) -> Result<()> {
        Ok(kernels::add(&self.device, y, x, len)?)
    }

    fn append(
        &mut self,
        cache: &mut Buffer<E>,
        x: &Buffer<E>,
        cursor: &Buffer<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        Ok(kernels::append(&self.device, cache, x, cursor, cache_shape(shape))?)
    }

    fn attention(
        &mut self,
        y: &mut Buffer<E>,
        q: &Buffer<E>,
        keys: &Buffer<E>,
        values: &Buffer<E>,
        cursor: &Buffer<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        Ok(kernels::attention(&self.device, y, q, keys, values, cursor, cache_shape(shape))?)
    }

    fn set_sampling(&mut self, outbox: &mut Outbox, sampling: &[Sampling]) -> Result<()> {
        let rules = sampling.iter().map(|&Sampling { temperature, top_k, top_p, seed }| {
            kernels::SampleRule { temperature, top_k, top_p, seed }
        });
        Ok(outbox.set_rules(rules)?)
    }

    fn sample(
        &mut self,
        outbox: &mut Outbox,
        tokens: &mut Buffer<u32>,
        cursor: &mut Buffer<u32>,
        logits: &Buffer<f32>,
        batch: usize,
        vocab: usize,
    ) -> Result<()> {
        assert_eq!(outbox.batch(), batch, "the outbox was made for another batch");
        Ok(kernels::sample(&self.device, outbox, tokens, cursor, logits, vocab)?)
    }

    fn take(&mut self, outbox: &mut Outbox, tokens: &mut Vec<u32>) -> Result<()> {
        Ok(outbox.take(tokens)?)
    }

    fn repeat(
        &mut self,
        recording: &mut Option<Graph>,
        mut body: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.taps.plain() {
            return body(self);
        }
        let graph = match recording {
            Some(graph) => graph,
            None => {
                let device = self.device.clone();
                recording.insert(Graph::record(&device, || body(self))?)
            }
        };
        Ok(graph.launch()?)
    }

    fn decode_stride(decoder: &kernels::Decoder<E>) -> usize {
        decoder.stride()
    }

    fn decode(
        &mut self,
        decoder: &mut kernels::Decoder<E>,
        weights: &Weights<Self>,
        state: DecodeState<'_, Self>,
        steps: usize,
    ) -> Result<()> {
        decoder::run(decoder, weights, state, steps)
    }

    fn attention_sublayer(
        &mut self,
        x: &mut Buffer<f32>,
        sublayer: &AttentionSublayer<Self>,
        cache: &mut LayerCache<Self>,
        s: &mut Scratch<Self>,
        cursor: &Buffer<u32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, channels) = (shape.step.rows(), shape.channels());
        if shape.head_size.is_multiple_of(8) && self.tensor_cores(rows, channels, channels) {
            return self.attention_tensor(x, sublayer, cache, s, cursor, shape);
        }
        if !self.fuses(rows, channels, channels) {
            return sublayer.compose(self, x, cache, s, cursor, shape);
        }
        let (norm, attention) = (&sublayer.norm, &sublayer.attention);
        let weights = NormQkvWeights {
            norm_weight: &norm.weight,
            norm_bias: &norm.bias,
            q: &attention.q,
            k: &attention.k,
            v: &attention.v,
            eps: norm.eps as f32,
        };
        let LayerCache { keys, values } = cache;
        kernels::norm_qkv(&self.device, &mut s.q, keys, values, x, &weights, cursor, cache_shape(shape))?;
        self.attention(&mut s.core, &s.q, keys, values, cursor, shape)?;
        let square = linear_shape(LinearShape { rows, inputs: channels, outputs: channels });
        Ok(kernels::linear_add(&self.device, x, &s.core, &attention.out, &attention.out_bias, square)?)
    }

    fn mlp_sublayer(
        &mut self,
        x: &mut Buffer<f32>,
        sublayer: &MlpSublayer<Self>,
        s: &mut Scratch<Self>,
        rows: usize,
    ) -> Result<()> {
        let (norm, mlp) = (&sublayer.norm, &sublayer.mlp);
        if self.tensor_cores(rows, mlp.channels, mlp.width) {
            return self.mlp_tensor(x, sublayer, s, rows);
        }
        if !self.fuses(rows, mlp.channels, mlp.width) {
            return sublayer.compose(self, x, s, rows);
        }
        let (shape, _) = norm_shape(Rows::All(rows), mlp.channels, norm.eps);
        let parameters = (&norm.weight, &norm.bias);
        kernels::norm_gelu(
            &self.device,
            &mut s.gelu,
            x,
            parameters,
            &mlp.up,
            &mlp.up_bias,
            shape,
            mlp.width,
        )?;
        let down = linear_shape(LinearShape { rows, inputs: mlp.width, outputs: mlp.channels });
        Ok(kernels::linear_add(&self.device, x, &s.gelu, &mlp.down, &mlp.down_bias, down)?)
    }

    fn head(
        &mut self,
        logits: &mut Buffer<f32>,
        x: &Buffer<f32>,
        head: &Head<'_, Self>,
        scratch: &mut Scratch<Self>,
        rows: Rows<'_, Buffer<u32>>,
    ) -> Result<()> {
        if !self.fuses(rows.count(), head.channels, head.channels) {
            return head.compose(self, logits, x, scratch, rows);
        }
        let (shape, cursor) = norm_shape(rows, head.channels, head.norm.eps);
        let parameters = (&head.norm.weight, &head.norm.bias);
        Ok(kernels::norm_logits(&self.device, logits, x, parameters, head.token, cursor, shape, head.vocab)?)
    }
}
