//! Where sampled tokens leave the device: a ring in host memory that the device writes and the host polls.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use crate::buffer::Buffer;
use crate::device::Device;
use crate::driver::check;
use crate::error::{Error, Result};
use crate::ledger::{Kind, Line};

/// The rule of picking; see the runtime's `Sampling`.
#[derive(Clone, Copy, Debug)]
pub struct SampleRule {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the k largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps this much probability; 1 keeps all.
    pub top_p: f32,
    /// Seeds the random numbers.
    pub seed: u64,
}

/// Words of `OutboxState` and of `SampleRule` in cu/pick.cuh.
const COUNTS_LEN: usize = 2;
const RULE_LEN: usize = 5;

/// A ring of `slots` rows of `batch` tokens, and on the device the counts of what was issued and each row's rule of picking. A new outbox is
/// greedy.
pub struct Outbox {
    slots: usize,
    batch: usize,
    taken: u32,
    ring: Pinned,
    pub(crate) state: Buffer<u32>,
}

impl Outbox {
    /// Elements of the device's own part for `batch` rows: rows issued, blocks finished, and the rules.
    #[must_use]
    pub const fn state_len(batch: usize) -> usize {
        COUNTS_LEN + batch * RULE_LEN
    }

    /// An empty ring.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device, slots: usize, batch: usize) -> Result<Self> {
        let state = Buffer::zeroed(device, Self::state_len(batch))?;
        let ring = Pinned::zeroed(device, slots * batch)?;
        Ok(Self { slots, batch, taken: 0, ring, state })
    }

    /// Sets the rules that tokens are picked by from now on, one a row.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_rules(&mut self, rules: impl Iterator<Item = SampleRule>) -> Result<()> {
        let words = rules.map(|SampleRule { temperature, top_k, top_p, seed }| {
            [top_k, seed as u32, (seed >> 32) as u32, temperature.to_bits(), top_p.to_bits()]
        });
        let words: Vec<[u32; RULE_LEN]> = words.collect();
        assert_eq!(words.len(), self.batch, "a rule for each row");
        self.state.write_from(COUNTS_LEN, words.as_flattened())
    }

    /// Rows of tokens that one sampling launch writes.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Slots of the ring.
    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.slots).expect("a small ring")
    }

    /// The ring's address on the device.
    pub(crate) fn address(&self) -> sys::CUdeviceptr {
        self.ring.device_address
    }

    /// Waits for the oldest row not taken yet and appends its tokens to `tokens`.
    ///
    /// # Errors
    /// The driver's, where a kernel failed; [`Error::Driver`] also where everything submitted has run and left no row.
    pub fn take(&mut self, tokens: &mut Vec<u32>) -> Result<()> {
        let first = self.taken as usize % self.slots * self.batch;
        for slot in first..first + self.batch {
            tokens.push(self.wait(slot)?);
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(())
    }

    /// Polls a slot until it holds a token of the row awaited.
    fn wait(&self, slot: usize) -> Result<u32> {
        /// Polls between two looks at the stream, which cost more than the poll.
        const POLLS: u32 = 4096;
        let awaited = u64::from(self.taken.wrapping_add(1));
        loop {
            for _ in 0..POLLS {
                let value = self.ring.load(slot);
                if value >> 32 == awaited {
                    return Ok(value as u32);
                }
                std::hint::spin_loop();
            }
            if self.idle()? && self.ring.load(slot) >> 32 != awaited {
                let meaning = "the stream is idle and no token was sampled".to_owned();
                return Err(Error::Driver { call: "take", code: "NO_TOKEN".into(), meaning });
            }
        }
    }

    /// Whether everything submitted has run.
    fn idle(&self) -> Result<bool> {
        self.ring.device.bind()?;
        // SAFETY: the stream is live.
        match unsafe { sys::cuStreamQuery(self.ring.device.stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code.result()).map(|()| true),
        }
    }
}

/// Words of host memory that the device sees.
struct Pinned {
    host: *mut u64,
    len: usize,
    device_address: sys::CUdeviceptr,
    device: Device,
    _line: Line,
}

// SAFETY: the memory belongs to this value; pinned memory may be read and freed from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn zeroed(device: &Device, len: usize) -> Result<Self> {
        device.bind()?;
        let bytes = len * size_of::<u64>();
        let mut device_address = 0;
        // SAFETY: the allocation is owned by the value made here and zeroed before anybody reads it.
        let host = unsafe {
            let host = check("cuMemHostAlloc", result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP))?;
            std::ptr::write_bytes(host.cast::<u8>(), 0, bytes);
            host
        };
        let line = Line::enter(Kind::PinnedMemory, bytes);
        let mut pinned = Self { host: host.cast(), len, device_address, device: device.clone(), _line: line };
        // SAFETY: `host` is mapped pinned memory of the current context.
        let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device_address, host, 0) };
        check("cuMemHostGetDevicePointer", code.result())?;
        pinned.device_address = device_address;
        Ok(pinned)
    }

    /// Reads a word that the device may be writing.
    fn load(&self, index: usize) -> u64 {
        assert!(index < self.len, "slot {index} of {}", self.len);
        // SAFETY: in bounds and aligned; an aligned 8-byte load sees a whole store of the device, old or new.
        unsafe { self.host.add(index).read_volatile() }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A kernel that still runs may write here.
        let _ = self.device.synchronize();
        // SAFETY: allocated in `zeroed`, freed once.
        let _ = unsafe { result::free_host(self.host.cast::<c_void>()) };
    }
}
