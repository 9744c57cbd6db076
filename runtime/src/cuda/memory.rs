//! Buffers of the GPU backend, and the copies in and out of them.

use std::borrow::Cow;

use touchstone_kernels::{Buffer, Element};

use super::Cuda;
use crate::error::Result;
use crate::plan::Entry;
use crate::weights::{Tensor, Values};

impl<E: Element> Cuda<E> {
    pub(super) fn zeroed<T: touchstone_kernels::Plain>(&self, entry: &Entry) -> Result<Buffer<T>> {
        Ok(Buffer::zeroed(self.device(), entry.elements())?)
    }

    pub(super) fn upload_weight(&self, tensor: &Tensor<'_>) -> Result<Buffer<E>> {
        let values: Cow<'_, [E]> = match &tensor.values {
            Values::F32(values) => E::from_f32s(values),
            Values::Bf16(values) => E::from_bf16s(values),
            Values::F64(values) => values.iter().map(|v| E::from_f64(*v)).collect(),
        };
        Ok(Buffer::from_slice(self.device(), &values)?)
    }
}

/// Rounds `values` to the buffer's precision and writes them to its front.
pub(super) fn write<T: Element>(y: &mut Buffer<T>, values: &[f64]) -> Result<()> {
    let values: Vec<T> = values.iter().map(|value| T::from_f64(*value)).collect();
    Ok(y.write(&values)?)
}

/// Reads the first `len` values.
pub(super) fn read<T: Element>(x: &Buffer<T>, len: usize) -> Result<Vec<f64>> {
    Ok(x.read(len)?.into_iter().map(Element::to_f64).collect())
}
