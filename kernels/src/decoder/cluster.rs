//! A whole generation by one cluster of blocks, or by a train of them: see `cu/decode.cu` and `cu/decode_train.cu`.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::cluster_layout::{ClusterLayout, SHARED_BYTES};
use super::{Generation, LayerState, LayerWeights, ModelShape, clusters_at_once, function};
use crate::buffer::Buffer;
use crate::compile::{architecture, cubin};
use crate::context::Module;
use crate::device::{Device, Launch, Start, arguments};
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;

/// What is looked up in the module.
const ENTRIES: [DecoderEntry; 4] = [
    DecoderEntry::decode,
    DecoderEntry::decode_pack,
    DecoderEntry::decode_constants,
    DecoderEntry::decode_head,
];

/// The kernels of a cluster's decoder, compiled for its layout and loaded.
#[derive(Clone)]
pub struct ClusterKernels(Arc<Loaded>);

struct Loaded {
    layout: ClusterLayout,
    functions: Vec<sys::CUfunction>,
    module: Module,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which every call sees to.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Loaded {}

impl ClusterKernels {
    /// Compiles the kernels or takes them from the cache, and loads them; `clocked` ones read the clock at each handoff. None
    /// where the GPU cannot hold such a cluster.
    ///
    /// # Errors
    /// The compiler's and the driver's.
    pub fn load(device: &Device, layout: ClusterLayout, clocked: bool) -> Result<Option<Self>> {
        let compute = device.info().compute;
        if compute.0 < 9 || device.info().shared_bytes_max < SHARED_BYTES {
            return Ok(None);
        }
        let module =
            Module::load(device.context(), &cubin(&architecture(compute), &layout.unit().clocked(clocked))?)?;
        let function = |entry| function(&module, entry, layout.element_bytes());
        let functions = ENTRIES.into_iter().map(function).collect::<Result<_>>()?;
        let loaded = Loaded { layout, functions, module, device: device.clone() };
        let (launch, blocks) = (loaded.launch(), layout.cluster() as u32);
        let clusters = clusters_at_once(device, loaded.function(DecoderEntry::decode), launch)?;
        Ok((clusters >= launch.grid[0] / blocks).then(|| Self(Arc::new(loaded))))
    }

    /// The layout that they were compiled for.
    #[must_use]
    pub fn layout(&self) -> ClusterLayout {
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
            grid: [self.layout.blocks() as u32, 1, 1],
            threads: self.layout.threads() as u32,
            shared_bytes: SHARED_BYTES as u32,
            start: Start::Clusters(cluster),
        }
    }
}

/// Packed weights, ready to generate.
pub struct ClusterDecoder<E: Element> {
    kernels: ClusterKernels,
    stream: Buffer<E>,
    constants: Buffer<f32>,
    /// What the clusters of a train tell each other, and what stays between launches.
    exchange: Option<Buffer<u32>>,
    /// The kernel's argument, built anew for every launch.
    arguments: Vec<u64>,
}

impl<E: Element> ClusterDecoder<E> {
    /// Packs a model's weights into `stream` and `constants`, of the layout's lengths. `exchange`: zeroed, four elements a word of the layout's,
    /// where it has such; `final_norm`: weight and bias; `token: [V, C]`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new<'a>(
        kernels: ClusterKernels,
        mut stream: Buffer<E>,
        mut constants: Buffer<f32>,
        exchange: Option<Buffer<u32>>,
        layers: impl ExactSizeIterator<Item = LayerWeights<'a, E>>,
        final_norm: [&Buffer<E>; 2],
        token: &Buffer<E>,
    ) -> Result<Self>
    where
        E: 'a,
    {
        let layout = kernels.layout();
        let shape = layout.shape();
        assert_eq!(layout.element_bytes(), size_of::<E>(), "the layout is of another precision");
        assert_eq!(stream.len(), layout.stream_len(), "the stream's length");
        assert_eq!(constants.len(), layout.constants_len(), "the constants' length");
        let words = layout.exchange_words().map(|words| 4 * words);
        assert_eq!(exchange.as_ref().map(Buffer::len), words, "the exchange's length");
        assert_eq!(layers.len(), shape.layers, "the number of layers");
        for (number, layer) in layers.enumerate() {
            pack(&kernels.0, &mut stream, &mut constants, &layer, number as u32)?;
        }
        pack_head(&kernels.0, &mut constants, final_norm, token)?;
        let arguments = Vec::with_capacity(12 + 2 * shape.layers);
        Ok(Self { kernels, stream, constants, exchange, arguments })
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
        let function = kernels.function(DecoderEntry::decode);
        // SAFETY: decode(const DecodeArguments), which `set_arguments` built, with every length checked; `load` saw that all clusters fit at once.
        // The kernel writes `exchange`, this value's own, and caches, logits, tokens, cursor and outbox, borrowed mutably here, at positions below P
        // as long as past + steps is at most P, which the caller of the model checks; owners free device memory only after the stream has run.
        unsafe { kernels.device.launch_function("decode", function, kernels.launch(), &mut [argument]) }
    }

    /// Builds `DecodeArguments` of `cu/decode_warp.cuh`.
    fn set_arguments<'a>(
        &mut self,
        generation: &Generation<'_, E>,
        states: impl ExactSizeIterator<Item = LayerState<'a, E>>,
        steps: u32,
    ) where
        E: 'a,
    {
        let shape = self.kernels.layout().shape();
        generation.check(shape, states.len(), steps, 1);
        let Generation { token, position, logits, tokens, cursor, outbox, eps, .. } = generation;
        let layers = shape.layers;
        let words = &mut self.arguments;
        words.clear();
        words.extend([
            &self.stream.address(),
            &self.constants.address(),
            &token.address(),
            &position.address(),
        ]);
        words.resize(4 + 2 * layers, 0);
        for (layer, state) in states.enumerate() {
            let [keys, values] = state.cache_addresses(shape, 1);
            words[4 + layer] = keys;
            words[4 + layers + layer] = values;
        }
        words.extend([logits.address(), tokens.address(), cursor.address(), outbox.address()]);
        words.push(outbox.state.address());
        words.push(u64::from(outbox.slots()) | u64::from(steps) << 32);
        words.push(u64::from(eps.to_bits()));
        words.extend(self.exchange.iter().map(Buffer::address));
    }
}

/// Packs one layer.
fn pack<E: Element>(
    kernels: &Loaded,
    stream: &mut Buffer<E>,
    constants: &mut Buffer<f32>,
    weights: &LayerWeights<'_, E>,
    layer: u32,
) -> Result<()> {
    let (stream, constants) = (stream.address(), constants.address());
    let (weights, layout) = (weights.addresses(kernels.layout.shape()), kernels.layout);
    let launch = |blocks| Launch { start: Start::After, ..Launch::new([blocks as u32, 1, 1], 256) };
    // SAFETY: decode_pack(char *stream, LayerWeights, u32 layer), a block a warp of the layout, and decode_constants(float *, LayerWeights, u32
    // layer), a block a block of it; the lengths of stream and constants were checked in `new`, those of the weights in `addresses`; the caller
    // owns all buffers until the stream has run.
    unsafe {
        let arguments: &mut [*mut c_void] = arguments![stream, weights, layer];
        let function = kernels.function(DecoderEntry::decode_pack);
        kernels.device.launch_function("decode_pack", function, launch(layout.warps()), arguments)?;
        let arguments: &mut [*mut c_void] = arguments![constants, weights, layer];
        let function = kernels.function(DecoderEntry::decode_constants);
        kernels.device.launch_function("decode_constants", function, launch(layout.cluster()), arguments)
    }
}

/// Makes the head's constants.
fn pack_head<E: Element>(
    kernels: &Loaded,
    constants: &mut Buffer<f32>,
    [weight, bias]: [&Buffer<E>; 2],
    token: &Buffer<E>,
) -> Result<()> {
    let ModelShape { channels, vocab, .. } = kernels.layout.shape();
    assert!(
        weight.len() == channels && bias.len() == channels && token.len() == vocab * channels,
        "the head"
    );
    let launch = Launch { start: Start::After, ..Launch::new([kernels.layout.cluster() as u32, 1, 1], 256) };
    let (constants, weight, bias, token) =
        (constants.address(), weight.address(), bias.address(), token.address());
    // SAFETY: decode_head(float *, const Element *gamma, const Element *beta, const Element *token), a block a block of the layout; lengths as
    // above and in `new`; the caller owns all buffers until the stream has run.
    unsafe {
        let arguments: &mut [*mut c_void] = arguments![constants, weight, bias, token];
        kernels.device.launch_function(
            "decode_head",
            kernels.function(DecoderEntry::decode_head),
            launch,
            arguments,
        )
    }
}
