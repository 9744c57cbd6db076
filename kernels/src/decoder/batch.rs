//! Generations of a batch by several clusters of blocks: see `cu/decode_batch.cu`.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::batch_layout::{BatchLayout, SEQUENCES, THREADS};
use super::cluster_layout::SHARED_BYTES;
use super::{Generation, LayerState, LayerWeights, ModelShape, clusters_at_once, function};
use crate::buffer::Buffer;
use crate::compile::{architecture, cubin};
use crate::context::Module;
use crate::device::{Device, Launch, Start, arguments};
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;

/// What is looked up in the module.
const ENTRIES: [DecoderEntry; 5] = [
    DecoderEntry::decode_batch,
    DecoderEntry::decode_batch_pack,
    DecoderEntry::decode_batch_constants,
    DecoderEntry::decode_batch_head,
    DecoderEntry::decode_batch_means,
];

/// The kernels of a batch's decoder, compiled for its layout and loaded.
#[derive(Clone)]
pub struct BatchKernels(Arc<Loaded>);

struct Loaded {
    layout: BatchLayout,
    batch: usize,
    /// Clusters that share the batch, at once.
    clusters: usize,
    functions: Vec<sys::CUfunction>,
    module: Module,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which every call sees to.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Loaded {}

impl BatchKernels {
    /// Compiles the kernels or takes them from the cache, and loads them; `clocked` ones read the clock at each handoff. None
    /// where the GPU cannot hold clusters for the whole batch at once.
    ///
    /// # Errors
    /// The compiler's and the driver's.
    pub fn load(device: &Device, layout: BatchLayout, batch: usize, clocked: bool) -> Result<Option<Self>> {
        let compute = device.info().compute;
        if compute.0 < 9 || device.info().shared_bytes_max < SHARED_BYTES {
            return Ok(None);
        }
        let module =
            Module::load(device.context(), &cubin(&architecture(compute), &layout.unit().clocked(clocked))?)?;
        let function = |entry| function(&module, entry, 2);
        let functions = ENTRIES.into_iter().map(function).collect::<Result<_>>()?;
        let mut loaded = Loaded { layout, batch, clusters: 1, functions, module, device: device.clone() };
        let decode = loaded.function(DecoderEntry::decode_batch);
        loaded.clusters = (clusters_at_once(device, decode, loaded.launch())? as usize).min(batch);
        Ok((loaded.clusters * SEQUENCES >= batch).then(|| Self(Arc::new(loaded))))
    }

    /// The layout that they were compiled for.
    #[must_use]
    pub fn layout(&self) -> BatchLayout {
        self.0.layout
    }
}

impl Loaded {
    fn function(&self, entry: DecoderEntry) -> sys::CUfunction {
        let index = ENTRIES.iter().position(|known| *known == entry).expect("an entry point of this kind");
        self.functions[index]
    }

    /// The launch of a generation.
    fn launch(&self) -> Launch {
        let cluster = self.layout.cluster() as u32;
        Launch {
            grid: [cluster * self.clusters as u32, 1, 1],
            threads: THREADS as u32,
            shared_bytes: SHARED_BYTES as u32,
            start: Start::Clusters(cluster),
        }
    }

    /// Submits a kernel that packs, in blocks of 256 threads.
    ///
    /// # Safety
    /// As for [`Device::launch`].
    unsafe fn pack(&self, entry: DecoderEntry, blocks: usize, arguments: &mut [*mut c_void]) -> Result<()> {
        let launch = Launch { start: Start::After, ..Launch::new([blocks as u32, 1, 1], 256) };
        // SAFETY: the caller's promise; the function belongs to the module held here.
        unsafe { self.device.launch_function(entry.name(), self.function(entry), launch, arguments) }
    }
}

/// Packed weights, ready to generate.
pub struct BatchDecoder<E: Element> {
    kernels: BatchKernels,
    stream: Buffer<E>,
    constants: Buffer<f32>,
    /// The kernel's argument, built anew for every launch.
    arguments: Vec<u64>,
}

impl<E: Element> BatchDecoder<E> {
    /// Packs a model's weights into `stream` and `constants`, of the layout's lengths. `final_norm`: weight and bias; `token: [V, C]`, `position: [P, C]`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new<'a>(
        kernels: BatchKernels,
        stream: Buffer<E>,
        constants: Buffer<f32>,
        layers: impl ExactSizeIterator<Item = LayerWeights<'a, E>>,
        final_norm: [&Buffer<E>; 2],
        [token, position]: [&Buffer<E>; 2],
    ) -> Result<Self>
    where
        E: 'a,
    {
        let layout = kernels.layout();
        let shape = layout.shape();
        assert_eq!(E::NAME, "bf16", "the kernels are of another precision");
        assert_eq!(stream.len(), layout.stream_len(), "the stream's length");
        assert_eq!(constants.len(), layout.constants_len(), "the constants' length");
        assert_eq!(layers.len(), shape.layers, "the number of layers");
        let arguments = Vec::with_capacity(13 + 2 * shape.layers);
        let mut decoder = Self { kernels, stream, constants, arguments };
        for (number, layer) in layers.enumerate() {
            decoder.pack_layer(&layer, number as u32)?;
        }
        decoder.pack_embeddings(final_norm, token, position)?;
        Ok(decoder)
    }

    /// Packs one layer.
    fn pack_layer(&mut self, weights: &LayerWeights<'_, E>, layer: u32) -> Result<()> {
        let (kernels, stream, constants) = (&self.kernels.0, self.stream.address(), self.constants.address());
        let (weights, layout) = (weights.addresses(kernels.layout.shape()), kernels.layout);
        // SAFETY: decode_batch_pack(char *stream, LayerWeights, u32 layer), a block a warp of the layout, and decode_batch_constants(float *,
        // LayerWeights, u32 layer), a block a block of it; the lengths of stream and constants were checked in `new`, those of the weights in
        // `addresses`; the caller owns all buffers until the stream has run.
        unsafe {
            let arguments: &mut [*mut c_void] = arguments![stream, weights, layer];
            kernels.pack(DecoderEntry::decode_batch_pack, layout.warps(), arguments)?;
            let arguments: &mut [*mut c_void] = arguments![constants, weights, layer];
            kernels.pack(DecoderEntry::decode_batch_constants, layout.cluster(), arguments)
        }
    }

    /// Packs the head, and makes the means of the embeddings.
    fn pack_embeddings(
        &mut self,
        [weight, bias]: [&Buffer<E>; 2],
        token: &Buffer<E>,
        position: &Buffer<E>,
    ) -> Result<()> {
        let (kernels, layout) = (&self.kernels.0, self.kernels.0.layout);
        let ModelShape { channels, vocab, context, .. } = layout.shape();
        assert!(weight.len() == channels && bias.len() == channels, "the last norm");
        assert!(token.len() == vocab * channels && position.len() == context * channels, "embeddings");
        let (stream, constants, means) = (self.stream.address(), self.constants.address(), self.means());
        let (weight, bias) = (weight.address(), bias.address());
        let (token, position) = (token.address(), position.address());
        // SAFETY: decode_batch_head(char *stream, float *constants, const bf16 *gamma, const bf16 *beta, const bf16 *token), a block a block of the
        // layout, and decode_batch_means(float *means, const bf16 *token, const bf16 *position), a warp a row of either; lengths as above and
        // in `new`; the caller owns all buffers until the stream has run.
        unsafe {
            let arguments: &mut [*mut c_void] = arguments![stream, constants, weight, bias, token];
            kernels.pack(DecoderEntry::decode_batch_head, layout.cluster(), arguments)?;
            let arguments: &mut [*mut c_void] = arguments![means, token, position];
            kernels.pack(DecoderEntry::decode_batch_means, (vocab + context).div_ceil(8), arguments)
        }
    }

    /// Where the means of the token embedding's rows are; behind them those of the position embedding.
    fn means(&self) -> sys::CUdeviceptr {
        self.constants.address() + (self.kernels.layout().means_start() * size_of::<f32>()) as u64
    }

    /// The module of its kernels.
    pub(super) fn module(&self) -> &Module {
        &self.kernels.0.module
    }

    /// See [`super::Decoder::run`].
    pub(super) fn run<'a>(
        &mut self,
        generation: Generation<'_, E>,
        layers: impl ExactSizeIterator<Item = LayerState<'a, E>>,
        steps: usize,
    ) -> Result<()>
    where
        E: 'a,
    {
        self.set_arguments(&generation, layers, steps as u32);
        let (kernels, argument) = (&self.kernels.0, self.arguments.as_mut_ptr().cast::<c_void>());
        let function = kernels.function(DecoderEntry::decode_batch);
        // SAFETY: decode_batch(const BatchArguments), which `set_arguments` built, with every length checked; the kernel writes caches, logits,
        // tokens, cursor and outbox, borrowed mutably here, the caches at positions below P alone; all clusters of the launch are resident at
        // once only by the way, since none waits for another; owners free device memory only after the stream has run.
        unsafe { kernels.device.launch_function("decode_batch", function, kernels.launch(), &mut [argument]) }
    }

    /// Builds `BatchArguments` of `cu/decode_batch.cu`.
    fn set_arguments<'a>(
        &mut self,
        generation: &Generation<'_, E>,
        states: impl ExactSizeIterator<Item = LayerState<'a, E>>,
        steps: u32,
    ) where
        E: 'a,
    {
        let (shape, batch, means) = (self.kernels.layout().shape(), self.kernels.0.batch, self.means());
        generation.check(shape, states.len(), steps, batch);
        let Generation { token, position, logits, tokens, cursor, outbox, eps, .. } = generation;
        let layers = shape.layers;
        let words = &mut self.arguments;
        words.clear();
        words.extend([self.stream.address(), self.constants.address()]);
        words.extend([means, means + (shape.vocab * size_of::<f32>()) as u64]);
        words.extend([token.address(), position.address()]);
        let first = words.len();
        words.resize(first + 2 * layers, 0);
        for (layer, state) in states.enumerate() {
            let [keys, values] = state.cache_addresses(shape, batch);
            words[first + layer] = keys;
            words[first + layers + layer] = values;
        }
        words.extend([logits.address(), tokens.address(), cursor.address(), outbox.address()]);
        words.push(outbox.state.address());
        words.push(u64::from(outbox.slots()) | u64::from(steps) << 32);
        words.push(batch as u64 | u64::from(eps.to_bits()) << 32);
    }
}
