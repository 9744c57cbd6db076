//! A whole generation by all multiprocessors: see `cu/decode_grid.cu`.

use std::sync::Arc;

use cudarc::driver::sys;

use super::grid_layout::GridLayout;
use super::{Generation, LayerState, function};
use crate::buffer::Buffer;
use crate::compile::{architecture, cubin};
use crate::context::Module;
use crate::device::{Device, Launch, Start, arguments};
use crate::driver::check;
use crate::element::Element;
use crate::entry::DecoderEntry;
use crate::error::Result;
use crate::sample;

/// The kernel of a decoder over the whole GPU, compiled for its layout and loaded.
#[derive(Clone)]
pub struct GridKernels(Arc<Loaded>);

struct Loaded {
    layout: GridLayout,
    function: sys::CUfunction,
    _module: Module,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which every call sees to.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Loaded {}

impl GridKernels {
    /// Compiles the kernel or takes it from the cache, and loads it. None where the GPU cannot hold all blocks at once.
    ///
    /// # Errors
    /// The compiler's and the driver's.
    pub fn load(device: &Device, layout: GridLayout) -> Result<Option<Self>> {
        let info = device.info();
        if info.compute.0 < 8
            || layout.blocks() > info.multiprocessors as usize
            || layout.shared_bytes() > info.shared_bytes_max
        {
            return Ok(None);
        }
        let module = Module::load(device.context(), &cubin(&architecture(info.compute), &layout.unit())?)?;
        let function = function(&module, DecoderEntry::decode_grid, layout.element_bytes())?;
        let loaded = Loaded { layout, function, _module: module, device: device.clone() };
        loaded.allow_shared_memory()?;
        Ok((loaded.blocks_a_multiprocessor()? > 0).then(|| Self(Arc::new(loaded))))
    }

    /// The layout that it was compiled for.
    #[must_use]
    pub fn layout(&self) -> GridLayout {
        self.0.layout
    }
}

impl Loaded {
    /// The launch of a generation.
    fn launch(&self) -> Launch {
        Launch {
            grid: [self.layout.blocks() as u32, 1, 1],
            threads: self.layout.threads() as u32,
            shared_bytes: self.layout.shared_bytes() as u32,
            start: Start::Cooperative,
        }
    }

    /// More shared memory than what every GPU has must be asked for.
    fn allow_shared_memory(&self) -> Result<()> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = self.layout.shared_bytes() as i32;
        // SAFETY: the function's module is live.
        let code = unsafe { sys::cuFuncSetAttribute(self.function, attribute, bytes) };
        check("cuFuncSetAttribute", code.result())
    }

    /// Blocks that a multiprocessor holds at once.
    fn blocks_a_multiprocessor(&self) -> Result<i32> {
        let (mut count, shared_bytes) = (0, self.layout.shared_bytes());
        // SAFETY: the function's module is live; `count` lives through the call.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut count,
                self.function,
                self.layout.threads() as i32,
                shared_bytes,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code.result())?;
        Ok(count)
    }
}

/// The kernel's own memory, ready to generate. Weights are read where they are.
pub struct GridDecoder<E: Element> {
    kernels: GridKernels,
    exchange: Buffer<u32>,
    state: Buffer<u32>,
    table: Buffer<u32>,
    /// What `table` holds.
    words: Vec<u32>,
    _elements: std::marker::PhantomData<E>,
}

impl<E: Element> GridDecoder<E> {
    /// Elements of `state`: `GridState` of `cu/grid_model.cuh`.
    pub const STATE_LEN: usize = 2;
    /// Elements of `table` for a layer: `Layer` of `cu/grid_model.cuh`, 15 addresses.
    pub const TABLE_LEN: usize = 2 * 15;

    /// Takes zeroed buffers: `exchange` of four elements a word of the layout's, `state`, and `table` for each layer.
    #[must_use]
    pub fn new(kernels: GridKernels, exchange: Buffer<u32>, state: Buffer<u32>, table: Buffer<u32>) -> Self {
        let layout = kernels.layout();
        assert_eq!(layout.element_bytes(), size_of::<E>(), "the layout is of another precision");
        assert_eq!(exchange.len(), 4 * layout.exchange_words(), "the exchange's length");
        assert_eq!(state.len(), Self::STATE_LEN, "the state's length");
        assert_eq!(table.len(), Self::TABLE_LEN * layout.shape().layers, "the table's length");
        let words = vec![0; table.len()];
        Self { kernels, exchange, state, table, words, _elements: std::marker::PhantomData }
    }

    /// See [`super::Decoder::run`].
    pub(super) fn run<'a>(
        &mut self,
        mut generation: Generation<'_, E>,
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
        self.set_table(layers)?;
        let vocab = self.kernels.layout().shape().vocab;
        if vocab <= sample::HELD_MAX || !generation.outbox.keeps_part(vocab) {
            return self.launch(&generation, steps, true);
        }
        // No block can hold so many logits: `sample` picks behind each step.
        for _ in 0..steps {
            self.launch(&generation, 1, false)?;
            let Generation { outbox, tokens, cursor, logits, .. } = &mut generation;
            sample::sample(&self.kernels.0.device, outbox, tokens, cursor, logits, vocab)?;
        }
        Ok(())
    }

    /// `steps` steps; without `picks` there is one, and nothing is sampled.
    fn launch(&self, generation: &Generation<'_, E>, steps: u32, picks: bool) -> Result<()> {
        let arguments = self.arguments(generation, steps, picks);
        let (kernels, arguments) = (&self.kernels.0, arguments!(arguments));
        // SAFETY: decode_grid(const GridArguments), with every length checked in `new`, `check` and `set_table`; `load` saw that all blocks fit at
        // once. The kernel writes exchange and state, this value's own, and caches, logits, tokens, cursor and outbox, borrowed mutably
        // here, at positions below P as long as past + steps is at most P, which the caller of the model checks; owners free device memory
        // only after the stream has run.
        unsafe {
            kernels.device.launch_function("decode_grid", kernels.function, kernels.launch(), arguments)
        }
    }

    /// Writes the table of layers, where it holds other addresses.
    fn set_table<'a>(&mut self, layers: impl ExactSizeIterator<Item = LayerState<'a, E>>) -> Result<()>
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
        if changed { self.table.write(&self.words) } else { Ok(()) }
    }

    fn arguments(&self, generation: &Generation<'_, E>, steps: u32, picks: bool) -> GridArguments {
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
            picks: picks.into(),
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
    picks: u32,
}
const _: () = assert!(size_of::<GridArguments>() == 112);
