//! A whole generation in one launch, for models that a cluster of blocks can run: see `cu/decode.cu`.

mod layout;

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

pub use layout::{DecoderLayout, ModelShape};

use crate::buffer::Buffer;
use crate::compile::{architecture, cubin};
use crate::device::{Device, Launch, Module, Start, arguments, no_attribute};
use crate::driver::check;
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;
use crate::outbox::Outbox;
use layout::{SHARED_BYTES, THREADS};

/// The kernels of a decoder, compiled for its layout and loaded.
#[derive(Clone)]
pub struct DecoderKernels(Arc<Loaded>);

struct Loaded {
    layout: DecoderLayout,
    functions: Vec<sys::CUfunction>,
    _module: Module,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which every call sees to.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Loaded {}

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
    /// Addresses, in the order of `LayerWeights` of `cu/decode_pack.cu`.
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

/// What a generation reads and changes besides the decoder's own.
pub struct Generation<'a, E: Element> {
    /// Token embedding, and head: `[V, C]`.
    pub token: &'a Buffer<E>,
    /// Position embedding `[P, C]`.
    pub position: &'a Buffer<E>,
    /// `[1, V]`: of the last step.
    pub logits: &'a mut Buffer<f32>,
    /// `[1]`: the token sampled last.
    pub tokens: &'a mut Buffer<u32>,
    /// `[2]`.
    pub cursor: &'a mut Buffer<u32>,
    /// Where the tokens go: of one row, with a slot for each of the steps.
    pub outbox: &'a mut Outbox,
    /// Added to the variance inside the norms' root.
    pub eps: f32,
}

impl DecoderKernels {
    /// Compiles the kernels or takes them from the cache, and loads them. None where the GPU cannot hold such a cluster.
    ///
    /// # Errors
    /// The compiler's and the driver's.
    pub fn load(device: &Device, layout: DecoderLayout) -> Result<Option<Self>> {
        let compute = device.info().compute;
        if compute.0 < 9 || device.info().shared_bytes_max < SHARED_BYTES {
            return Ok(None);
        }
        let module = Module::load(device.context(), &cubin(&architecture(compute), &layout.unit())?)?;
        let suffix = if layout.element_bytes() == 2 { "bf16" } else { "f32" };
        let function = |entry: &DecoderEntry| module.function(&format!("{}_{suffix}", entry.name()));
        let functions = DecoderEntry::ALL.iter().map(function).collect::<Result<_>>()?;
        let loaded = Loaded { layout, functions, _module: module, device: device.clone() };
        loaded.allow_large_clusters()?;
        Ok((loaded.clusters_at_once()? > 0).then(|| Self(Arc::new(loaded))))
    }

    /// The layout that they were compiled for.
    #[must_use]
    pub fn layout(&self) -> DecoderLayout {
        self.0.layout
    }
}

impl Loaded {
    fn function(&self, entry: DecoderEntry) -> sys::CUfunction {
        self.functions[entry as usize]
    }

    /// The launch of a generation.
    fn launch(&self) -> Launch {
        let cluster = self.layout.cluster() as u32;
        Launch {
            grid: [cluster, 1, 1],
            threads: THREADS as u32,
            shared_bytes: SHARED_BYTES as u32,
            start: Start::Clusters(cluster),
        }
    }

    /// More shared memory and more blocks a cluster than what every GPU of the architecture has must be asked for.
    fn allow_large_clusters(&self) -> Result<()> {
        use sys::CUfunction_attribute as Attribute;
        let function = self.function(DecoderEntry::decode);
        for (attribute, value) in [
            (Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED_BYTES as i32),
            (Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
        ] {
            // SAFETY: the function's module is live.
            let code = unsafe { sys::cuFuncSetAttribute(function, attribute, value) };
            check("cuFuncSetAttribute", code.result())?;
        }
        Ok(())
    }

    /// Clusters that the GPU, or the part of it that we see, holds at once.
    fn clusters_at_once(&self) -> Result<i32> {
        let (mut count, mut attribute) = (0, no_attribute());
        let config = self.launch().config(self.device.stream(), self.device.info().compute.0, &mut attribute);
        // SAFETY: the function's module is live; `count` and `config` live through the call.
        let code = unsafe {
            sys::cuOccupancyMaxActiveClusters(&mut count, self.function(DecoderEntry::decode), &config)
        };
        check("cuOccupancyMaxActiveClusters", code.result())?;
        Ok(count)
    }
}

/// Packed weights, ready to generate.
pub struct Decoder<E: Element> {
    kernels: DecoderKernels,
    stream: Buffer<E>,
    constants: Buffer<f32>,
    /// The kernel's argument, built anew for every launch.
    arguments: Vec<u64>,
}

impl<E: Element> Decoder<E> {
    /// Packs a model's weights into `stream` and `constants`, of the layout's lengths. `final_norm`: weight and bias; `token: [V, C]`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new<'a>(
        kernels: DecoderKernels,
        mut stream: Buffer<E>,
        mut constants: Buffer<f32>,
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
        assert_eq!(layers.len(), shape.layers, "the number of layers");
        for (number, layer) in layers.enumerate() {
            pack(&kernels.0, &mut stream, &mut constants, &layer, number as u32)?;
        }
        pack_head(&kernels.0, &mut constants, final_norm, token)?;
        let arguments = Vec::with_capacity(11 + 2 * shape.layers);
        Ok(Self { kernels, stream, constants, arguments })
    }

    /// Runs `steps` decode steps; `caches`: keys and values of each layer, `[1, H, P, D]`. Allocates nothing.
    ///
    /// # Errors
    /// The driver's.
    pub fn run<'a>(
        &mut self,
        generation: Generation<'_, E>,
        caches: impl ExactSizeIterator<Item = [&'a mut Buffer<E>; 2]>,
        steps: usize,
    ) -> Result<()>
    where
        E: 'a,
    {
        assert!(steps <= generation.outbox.slots() as usize, "{steps} steps, more than the outbox has slots");
        self.set_arguments(&generation, caches, steps as u32);
        let (kernels, argument) = (&self.kernels.0, self.arguments.as_mut_ptr().cast::<c_void>());
        let function = kernels.function(DecoderEntry::decode);
        // SAFETY: decode(const DecodeArguments), which `set_arguments` built, with every length checked; the kernel writes caches, logits, tokens,
        // cursor and outbox, borrowed mutably here, at positions below P as long as past + steps is at most P, which the caller of the
        // model checks; owners free device memory only after the stream has run.
        unsafe { kernels.device.launch_function("decode", function, kernels.launch(), &mut [argument]) }
    }

    /// Builds `DecodeArguments` of `cu/decode.cu`.
    fn set_arguments<'a>(
        &mut self,
        generation: &Generation<'_, E>,
        caches: impl ExactSizeIterator<Item = [&'a mut Buffer<E>; 2]>,
        steps: u32,
    ) where
        E: 'a,
    {
        let Generation { token, position, logits, tokens, cursor, outbox, eps } = generation;
        let ModelShape { channels, layers, context, vocab, .. } = self.kernels.layout().shape();
        assert!(token.len() == vocab * channels && position.len() == context * channels, "embeddings");
        assert!(logits.len() >= vocab && tokens.len() >= 1 && cursor.len() >= 2, "state");
        assert!(outbox.batch() == 1 && caches.len() == layers, "one sequence, and a cache for each layer");
        let words = &mut self.arguments;
        words.clear();
        words.extend([
            &self.stream.address(),
            &self.constants.address(),
            &token.address(),
            &position.address(),
        ]);
        words.resize(4 + 2 * layers, 0);
        for (layer, cache) in caches.enumerate() {
            assert!(cache.iter().all(|part| part.len() == context * channels), "a cache of one sequence");
            words[4 + layer] = cache[0].address();
            words[4 + layers + layer] = cache[1].address();
        }
        words.extend([logits.address(), tokens.address(), cursor.address(), outbox.address()]);
        words.push(outbox.state.address());
        words.push(u64::from(outbox.slots()) | u64::from(steps) << 32);
        words.push(u64::from(eps.to_bits()));
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
