//! Whole generations in one launch, by kernels that are compiled for one model: over a cluster of blocks (`cu/decode.cu`) where a model is small
//! enough, for a batch over several (`cu/decode_batch.cu`), else over the whole GPU (`cu/decode_shards.cu`, `cu/decode_grid.cu`).

mod batch;
mod batch_layout;
mod cluster;
mod cluster_layout;
mod grid;
mod grid_layout;
mod shard_layout;
mod spread;

use cudarc::driver::sys;

pub use batch::{BatchDecoder, BatchKernels};
pub use batch_layout::BatchLayout;
pub use cluster::{ClusterDecoder, ClusterKernels};
pub use cluster_layout::ClusterLayout;
pub use grid::{GridDecoder, GridKernels};
pub use grid_layout::GridLayout;
pub use shard_layout::ShardLayout;
pub use spread::Spread;

use crate::buffer::Buffer;
use crate::clock::{Handoff, handoffs};
use crate::context::Module;
use crate::device::{Device, Launch, no_attributes};
use crate::driver::check;
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;
use crate::outbox::Outbox;
use crate::shape::check_cursor;

/// A model's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// C.
    pub channels: usize,
    /// H.
    pub heads: usize,
    /// F.
    pub width: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// P.
    pub context: usize,
    /// V.
    pub vocab: usize,
}

impl ModelShape {
    /// The dimensions as macros of the device code: those of a cluster's, or of the whole GPU's.
    fn macros(self, whole_gpu: bool) -> [(&'static str, usize); 6] {
        let Self { channels, heads, width, layers, context, vocab } = self;
        let values = [channels, heads, width, layers, context, vocab];
        let names = if whole_gpu {
            ["GRID_CHANNELS", "GRID_HEADS", "GRID_WIDTH", "GRID_LAYERS", "GRID_CONTEXT", "GRID_VOCAB"]
        } else {
            ["CHANNELS", "HEADS", "WIDTH", "LAYERS", "CONTEXT", "VOCAB"]
        };
        std::array::from_fn(|i| (names[i], values[i]))
    }
}

/// The kernels of a decoder of any kind.
pub enum DecoderKernels {
    /// Of a cluster.
    Cluster(ClusterKernels),
    /// Of several clusters, for a batch.
    Batch(BatchKernels),
    /// Of the whole GPU.
    Grid(GridKernels),
}

/// What runs generations of one model.
pub enum Decoder<E: Element> {
    /// By a cluster.
    Cluster(ClusterDecoder<E>),
    /// By several clusters, a batch.
    Batch(BatchDecoder<E>),
    /// By the whole GPU.
    Grid(GridDecoder<E>),
}

impl<E: Element> Decoder<E> {
    /// Steps that a launch should have at most, since nothing stops it: a cluster needs milliseconds for a whole context, the models of a
    /// grid up to seconds. A batch's outbox has few slots.
    #[must_use]
    pub fn stride(&self) -> usize {
        match self {
            Self::Cluster(_) => usize::MAX,
            Self::Batch(_) | Self::Grid(_) => 32,
        }
    }

    /// Where its cycles went, if it was loaded to read the clock.
    ///
    /// # Errors
    /// The driver's.
    pub fn handoffs(&self) -> Result<Vec<Handoff>> {
        handoffs(match self {
            Self::Cluster(decoder) => decoder.module(),
            Self::Batch(decoder) => decoder.module(),
            Self::Grid(decoder) => decoder.module(),
        })
    }

    /// Runs `steps` decode steps. Allocates nothing. The context must have room for them.
    ///
    /// # Errors
    /// The driver's.
    pub fn run<'a>(
        &mut self,
        generation: Generation<'_, E>,
        layers: impl ExactSizeIterator<Item = LayerState<'a, E>>,
        steps: usize,
    ) -> Result<()>
    where
        E: 'a,
    {
        match self {
            Self::Cluster(decoder) => decoder.run(generation, layers, steps),
            Self::Batch(decoder) => decoder.run(generation, layers, steps),
            Self::Grid(decoder) => decoder.run(generation, layers, steps),
        }
    }
}

/// A layer's parameters, as `torch.nn` stores them.
pub struct LayerWeights<'a, E: Element> {
    /// LayerNorm in front of attention: weight and bias `[C]`.
    pub norm_1: [&'a Buffer<E>; 2],
    /// Projections to q, k and v, and out of attention: `[C, C]`.
    pub qkvo: [&'a Buffer<E>; 4],
    /// Bias of the last `[C]`.
    pub out_bias: &'a Buffer<E>,
    /// LayerNorm in front of the MLP.
    pub norm_2: [&'a Buffer<E>; 2],
    /// `[F, C]` and `[F]`.
    pub up: [&'a Buffer<E>; 2],
    /// `[C, F]` and `[C]`.
    pub down: [&'a Buffer<E>; 2],
}

impl<E: Element> LayerWeights<'_, E> {
    /// Addresses, in the order of `LayerWeights` of `cu/decode_pack.cu` and `cu/decode_batch_pack.cu`, and of `Layer` of `cu/grid_model.cuh`.
    fn addresses(&self, shape: ModelShape) -> [sys::CUdeviceptr; 13] {
        let ModelShape { channels: c, width: f, .. } = shape;
        let [q, k, v, out] = self.qkvo;
        let parts = [
            (self.norm_1[0], c),
            (self.norm_1[1], c),
            (q, c * c),
            (k, c * c),
            (v, c * c),
            (out, c * c),
            (self.out_bias, c),
            (self.norm_2[0], c),
            (self.norm_2[1], c),
            (self.up[0], f * c),
            (self.up[1], f),
            (self.down[0], c * f),
            (self.down[1], c),
        ];
        parts.map(|(part, len)| {
            assert_eq!(part.len(), len, "a parameter's length");
            part.address()
        })
    }
}

/// A layer's parameters, and its cache, keys and values `[B, H, P, D]`.
pub struct LayerState<'a, E: Element> {
    /// As they were when the decoder was made.
    pub weights: LayerWeights<'a, E>,
    /// Changed at the positions that are decoded.
    pub cache: [&'a mut Buffer<E>; 2],
}

impl<E: Element> LayerState<'_, E> {
    /// Addresses of keys and values of so many sequences.
    fn cache_addresses(&self, shape: ModelShape, batch: usize) -> [sys::CUdeviceptr; 2] {
        let len = batch * shape.context * shape.channels;
        assert!(self.cache.iter().all(|part| part.len() == len), "a cache of {batch} sequences");
        [self.cache[0].address(), self.cache[1].address()]
    }
}

/// What a generation reads and changes besides the decoder's own.
pub struct Generation<'a, E: Element> {
    /// Token embedding, and head: `[V, C]`.
    pub token: &'a Buffer<E>,
    /// Position embedding `[P, C]`.
    pub position: &'a Buffer<E>,
    /// The last norm's weight and bias `[C]`.
    pub final_norm: [&'a Buffer<E>; 2],
    /// `[B, V]`: of the last step.
    pub logits: &'a mut Buffer<f32>,
    /// `[B]`: the tokens sampled last.
    pub tokens: &'a mut Buffer<u32>,
    /// `[B, 3]`.
    pub cursor: &'a mut Buffer<u32>,
    /// Where the tokens go: of B rows, with a slot for each of the steps.
    pub outbox: &'a mut Outbox,
    /// Added to the variance inside the norms' root.
    pub eps: f32,
}

impl<E: Element> Generation<'_, E> {
    /// Refuses buffers that are not those of a model of this shape with `layers` layers and of `batch` sequences, and more steps than there are slots.
    fn check(&self, shape: ModelShape, layers: usize, steps: u32, batch: usize) {
        let ModelShape { channels, context, vocab, .. } = shape;
        let Self { token, position, final_norm, logits, tokens, cursor, outbox, .. } = self;
        assert!(token.len() == vocab * channels && position.len() == context * channels, "embeddings");
        assert!(final_norm.iter().all(|part| part.len() == channels), "the last norm");
        assert!(logits.len() >= batch * vocab && tokens.len() >= batch, "state");
        check_cursor(cursor, batch);
        assert!(outbox.batch() == batch, "an outbox of {batch} rows");
        assert_eq!(layers, shape.layers, "a state for each layer");
        assert!(steps <= outbox.slots(), "{steps} steps, more than the outbox has slots");
    }
}

/// The function of an entry point for elements of so many bytes.
fn function(module: &Module, entry: DecoderEntry, element_bytes: usize) -> Result<sys::CUfunction> {
    let precision = if element_bytes == 2 { "bf16" } else { "f32" };
    module.function(&format!("{}_{precision}", entry.name()))
}

/// Lets a kernel have more shared memory than what every GPU has.
fn allow_shared_memory(function: sys::CUfunction, bytes: u32) -> Result<()> {
    allow(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
}

fn allow(function: sys::CUfunction, attribute: sys::CUfunction_attribute, value: u32) -> Result<()> {
    // SAFETY: the function's module is live.
    let code = unsafe { sys::cuFuncSetAttribute(function, attribute, value as i32) };
    check("cuFuncSetAttribute", code.result())
}

/// Clusters of this launch that the GPU, or the part of it that we see, holds at once. Lets the kernel have as large ones, and as much shared memory.
fn clusters_at_once(device: &Device, function: sys::CUfunction, launch: Launch) -> Result<u32> {
    device.bind()?;
    allow_shared_memory(function, launch.shared_bytes)?;
    allow(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
    let (mut count, mut attribute) = (0, no_attributes());
    let config = launch.config(device.stream(), device.info().compute.0, &mut attribute);
    // SAFETY: the function's module is live; `count` and `config` live through the call.
    let code = unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config) };
    check("cuOccupancyMaxActiveClusters", code.result())?;
    Ok(count as u32)
}

/// Models that the layouts are tested on.
#[cfg(test)]
mod shapes {
    use super::ModelShape;

    pub const SMALL: ModelShape =
        ModelShape { channels: 128, heads: 4, width: 512, layers: 6, context: 256, vocab: 65 };
    pub const WIDE: ModelShape =
        ModelShape { channels: 768, heads: 8, width: 3072, layers: 12, context: 256, vocab: 95 };
    pub const XL: ModelShape =
        ModelShape { channels: 1600, heads: 25, width: 6400, layers: 48, context: 1024, vocab: 50257 };
}
