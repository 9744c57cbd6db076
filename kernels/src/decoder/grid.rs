//! A whole generation by the whole GPU: see `cu/decode_grid.cu` and `cu/decode_shards.cu`.

use std::sync::Arc;

use cudarc::driver::sys;

use super::{Generation, LayerState, ModelShape, Spread, allow_shared_memory, clusters_at_once, function};
use crate::buffer::Buffer;
use crate::compile::{architecture, cubin};
use crate::context::Module;
use crate::device::{Device, Launch, Start, arguments};
use crate::driver::check;
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;

/// The kernels of a decoder over the whole GPU, compiled for its layout and loaded.
#[derive(Clone)]
pub struct GridKernels(Arc<Loaded>);

struct Loaded {
    layout: Spread,
    generate: sys::CUfunction,
    /// Makes the sums of rows behind norms, where the layout has such.
    add_up: Option<sys::CUfunction>,
    module: Module,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which every call sees to.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Loaded {}

impl GridKernels {
    /// Compiles the kernels or takes them from the cache, and loads them; `clocked` ones read the clock at each handoff. None
    /// where the GPU cannot hold all blocks at once.
    ///
    /// # Errors
    /// The compiler's and the driver's.
    pub fn load(device: &Device, layout: Spread, clocked: bool) -> Result<Option<Self>> {
        let (info, launch) = (device.info(), layout.launch());
        if info.compute.0 < 8
            || launch.grid[0] > info.multiprocessors
            || launch.shared_bytes as usize > info.shared_bytes_max
        {
            return Ok(None);
        }
        let module = Module::load(
            device.context(),
            &cubin(&architecture(info.compute), &layout.unit().clocked(clocked))?,
        )?;
        let generate = function(&module, layout.entry(), layout.element_bytes())?;
        let add_up =
            layout.sums().map(|_| function(&module, DecoderEntry::decode_shard_sums, layout.element_bytes()));
        let loaded = Loaded { layout, generate, add_up: add_up.transpose()?, module, device: device.clone() };
        Ok(loaded.fits()?.then(|| Self(Arc::new(loaded))))
    }

    /// The layout that it was compiled for.
    #[must_use]
    pub fn layout(&self) -> Spread {
        self.0.layout
    }
}

impl Loaded {
    /// Whether the GPU, or the part of it that we see, holds all blocks at once.
    fn fits(&self) -> Result<bool> {
        let launch = self.layout.launch();
        allow_shared_memory(self.generate, launch.shared_bytes)?;
        if let Start::Clusters(cluster) = launch.start {
            return Ok(clusters_at_once(&self.device, self.generate, launch)? >= launch.grid[0] / cluster);
        }
        let mut count = 0;
        // SAFETY: the function's module is live; `count` lives through the call.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut count,
                self.generate,
                launch.threads as i32,
                launch.shared_bytes as usize,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code.result())?;
        Ok(count > 0)
    }
}

/// Rows that a block of `decode_shard_sums` adds up.
const ROWS_A_BLOCK: usize = 8;

/// The kernels' own memory, ready to generate. Weights are read where they are.
pub struct GridDecoder<E: Element> {
    kernels: GridKernels,
    exchange: Buffer<u32>,
    state: Buffer<u32>,
    table: Buffer<u32>,
    sums: Option<Buffer<f32>>,
    /// What `table` holds.
    words: Vec<u32>,
    _elements: std::marker::PhantomData<E>,
}

impl<E: Element> GridDecoder<E> {
    /// Elements of `state`: `GridState` of `cu/grid_model.cuh`.
    pub const STATE_LEN: usize = 3;
    /// Elements of `table` for a layer: `Layer` of `cu/grid_model.cuh`, 15 addresses.
    pub const TABLE_LEN: usize = 2 * 15;

    /// Takes zeroed buffers: `exchange` of four elements a word of the layout's, `state`, `table` for each layer, and `sums` of two elements a
    /// row, where the layout has such.
    #[must_use]
    pub fn new(
        kernels: GridKernels,
        exchange: Buffer<u32>,
        state: Buffer<u32>,
        table: Buffer<u32>,
        sums: Option<Buffer<f32>>,
    ) -> Self {
        let layout = kernels.layout();
        assert_eq!(layout.element_bytes(), size_of::<E>(), "the layout is of another precision");
        assert_eq!(exchange.len(), 4 * layout.exchange_words(), "the exchange's length");
        assert_eq!(state.len(), Self::STATE_LEN, "the state's length");
        assert_eq!(table.len(), Self::TABLE_LEN * layout.shape().layers, "the table's length");
        assert_eq!(sums.as_ref().map(Buffer::len), layout.sums().map(|rows| 2 * rows), "the sums' length");
        let words = vec![0; table.len()];
        Self { kernels, exchange, state, table, sums, words, _elements: std::marker::PhantomData }
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
        let steps = steps as u32;
        generation.check(self.kernels.layout().shape(), layers.len(), steps, 1);
        if steps == 0 {
            return Ok(());
        }
        if self.set_table(layers)? {
            self.add_up(&generation)?;
        }
        let arguments = self.arguments(&generation, steps);
        let kernels = &self.kernels.0;
        let sums = self.sums.as_ref().map_or(0, Buffer::address);
        let name = kernels.layout.entry().name();
        // SAFETY: decode_grid(const GridArguments) or decode_shards(const GridArguments, const float2 *), with every length checked in `new`, `check`
        // and `set_table`; `load` saw that all blocks fit at once. The kernel writes exchange and state, this value's own, and caches, logits,
        // tokens, cursor and outbox, borrowed mutably here, at positions below P as long as past + steps is at most P, which the
        // caller of the model checks; owners free device memory only after the stream has run.
        unsafe {
            let arguments = arguments!(arguments, sums);
            kernels.device.launch_function(name, kernels.generate, kernels.layout.launch(), arguments)
        }
    }

    /// Makes the sums, where the layout has such, once the table holds the weights' addresses.
    fn add_up(&mut self, generation: &Generation<'_, E>) -> Result<()> {
        let kernels = &self.kernels.0;
        let (Some(function), Some(sums)) = (kernels.add_up, &mut self.sums) else { return Ok(()) };
        let ModelShape { layers, channels, width, vocab, .. } = kernels.layout.shape();
        let rows = (3 * channels + width).max(vocab);
        let grid = [rows.div_ceil(ROWS_A_BLOCK) as u32, layers as u32 + 1, 1];
        let launch = Launch { start: Start::After, ..Launch::new(grid, 32 * ROWS_A_BLOCK as u32) };
        let [weight, bias] = generation.final_norm.map(Buffer::address);
        let (sums, table, token) = (sums.address(), self.table.address(), generation.token.address());
        // SAFETY: decode_shard_sums(float2 *, const Layer *, const Element *norm_weight, const Element *norm_bias, const Element *token), with
        // lengths as for `launch`: it reads the parameters alone and writes `sums`, this value's own.
        unsafe {
            let arguments = arguments!(sums, table, weight, bias, token);
            kernels.device.launch_function("decode_shard_sums", function, launch, arguments)
        }
    }

    /// Writes the table of layers, where it holds other addresses: whether it did.
    fn set_table<'a>(&mut self, layers: impl ExactSizeIterator<Item = LayerState<'a, E>>) -> Result<bool>
    where
        E: 'a,
    {
        let shape = self.kernels.layout().shape();
        let mut changed = false;
        for (layer, words) in layers.zip(self.words.chunks_exact_mut(Self::TABLE_LEN)) {
            let addresses = layer.weights.addresses(shape).into_iter().chain(layer.cache_addresses(shape, 1));
            for (address, word) in addresses.zip(words.chunks_exact_mut(2)) {
                let halves = [address as u32, (address >> 32) as u32];
                changed |= word != halves;
                word.copy_from_slice(&halves);
            }
        }
        if changed {
            self.table.write(&self.words)?;
        }
        Ok(changed)
    }

    fn arguments(&self, generation: &Generation<'_, E>, steps: u32) -> GridArguments {
        let Generation { token, position, final_norm, logits, tokens, cursor, outbox, eps } = generation;
        GridArguments {
            layers: self.table.address(),
            token: token.address(),
            position: position.address(),
            final_norm: final_norm.map(|part| part.address()),
            exchange: self.exchange.address(),
            state: self.state.address(),
            rule: outbox.state.address(),
            outbox: outbox.address(),
            tokens: tokens.address(),
            cursor: cursor.address(),
            logits: logits.address(),
            steps,
            slots: outbox.slots(),
            eps: *eps,
        }
    }
}

/// `GridArguments` of `cu/grid_model.cuh`.
#[repr(C)]
struct GridArguments {
    layers: sys::CUdeviceptr,
    token: sys::CUdeviceptr,
    position: sys::CUdeviceptr,
    final_norm: [sys::CUdeviceptr; 2],
    exchange: sys::CUdeviceptr,
    state: sys::CUdeviceptr,
    rule: sys::CUdeviceptr,
    outbox: sys::CUdeviceptr,
    tokens: sys::CUdeviceptr,
    cursor: sys::CUdeviceptr,
    logits: sys::CUdeviceptr,
    steps: u32,
    slots: u32,
    eps: f32,
}
const _: () = assert!(size_of::<GridArguments>() == 112);
