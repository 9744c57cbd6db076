//! Device memory with an owner.

use cudarc::driver::{result, sys};

use crate::device::Device;
use crate::driver::check;
use crate::element::Plain;
use crate::error::Result;
use crate::ledger::{Kind, Line};

/// `len` elements of device memory, freed on drop.
pub struct Buffer<T: Plain> {
    address: sys::CUdeviceptr,
    len: usize,
    device: Device,
    _line: Line,
    _elements: std::marker::PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Allocates `len` elements, all bytes zero.
    ///
    /// # Errors
    /// The driver's, most often out of memory.
    pub fn zeroed(device: &Device, len: usize) -> Result<Self> {
        let buffer = Self::allocate(device, len)?;
        let (address, bytes) = (buffer.address, len * size_of::<T>());
        // SAFETY: the range is exactly the allocation; the stream is live.
        check("cuMemsetD8Async", unsafe { result::memset_d8_async(address, 0, bytes, device.stream()) })?;
        Ok(buffer)
    }

    /// Allocates as many elements as `values` and copies them in.
    ///
    /// # Errors
    /// The driver's.
    pub fn from_slice(device: &Device, values: &[T]) -> Result<Self> {
        let mut buffer = Self::allocate(device, values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// Allocates `len` elements, whatever they may hold.
    fn allocate(device: &Device, len: usize) -> Result<Self> {
        assert!(len > 0, "a buffer has at least one element");
        let bytes = len * size_of::<T>();
        device.bind()?;
        // SAFETY: no precondition; the memory is owned by the value made here.
        let address = check("cuMemAlloc", unsafe { result::malloc_sync(bytes) })?;
        let line = Line::enter(Kind::DeviceMemory, bytes);
        Ok(Self { address, len, device: device.clone(), _line: line, _elements: std::marker::PhantomData })
    }

    /// Number of elements.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies `values` to the front.
    ///
    /// # Errors
    /// The driver's.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.write_from(0, values)
    }

    /// Copies `values` to the elements from `first` on.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn write_from(&mut self, first: usize, values: &[T]) -> Result<()> {
        let end = first + values.len();
        assert!(end <= self.len, "{} values from {first} on for a buffer of {}", values.len(), self.len);
        let to = self.address + (first * size_of::<T>()) as u64;
        self.device.bind()?;
        // SAFETY: the destination holds `len` elements; `values` is pageable memory, which the driver has read when the call returns.
        let copied = unsafe { result::memcpy_htod_async(to, values, self.device.stream()) };
        check("cuMemcpyHtoDAsync", copied)
    }

    /// Copies the first `len` elements out, after everything submitted before.
    ///
    /// # Errors
    /// The driver's, also for kernels that failed before.
    pub fn read(&self, len: usize) -> Result<Vec<T>> {
        assert!(len <= self.len, "{len} values of a buffer of {}", self.len);
        self.device.bind()?;
        let mut values = vec![T::default(); len];
        // SAFETY: the source holds `len` elements, any bit pattern of which is a `T`; the vector outlives the copy, because the
        // wait below comes before it can be moved or freed.
        let copied = unsafe { result::memcpy_dtoh_async(&mut values, self.address, self.device.stream()) };
        let waited = self.device.synchronize();
        check("cuMemcpyDtoHAsync", copied)?;
        waited?;
        Ok(values)
    }

    /// The device address, for a launcher's argument list.
    pub(crate) fn address(&self) -> sys::CUdeviceptr {
        self.address
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: allocated in `zeroed`, freed once; cuMemFree waits for kernels that still use it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}
